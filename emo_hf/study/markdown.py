"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from emo_hf.study.document import Block, Heading, Picture, Table, Text


def markdown(blocks: Sequence[Block]) -> str:
    """The report as a Markdown document; pictures lie beside it."""
    return "\n\n".join(_block(block) for block in blocks) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Picture):
        return f"![{block.shows}]({block.file})"
    return _table(block)


def _table(table: Table) -> str:
    rule = ["---" if i < table.words else "---:" for i in range(len(table.header))]
    rows = [table.header, rule, *table.rows]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return text if table.folded is None else f"<details><summary>{table.folded}</summary>\n\n{text}\n\n</details>"
