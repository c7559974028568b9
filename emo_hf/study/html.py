"""A report as one HTML page that needs nothing beside it: pictures are embedded, no script, no font, no network."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path

from emo_hf.study.document import Block, Heading, Picture, Table, Text

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2126; background: #fff; margin: 0 auto; max-width: 72rem;
       padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.6rem; padding-top: 0.6rem; border-top: 1px solid #dfe3e8; }
h3 { font-size: 1.02rem; margin: 1.5rem 0 0.4rem; }
p { max-width: 52rem; }
nav { margin: 0 0 1rem; font-size: 0.92rem; line-height: 1.9; }
nav a { margin-right: 1.1rem; white-space: nowrap; }
a { color: #1f5fa8; }
img { max-width: 100%; height: auto; display: block; margin: 0.8rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.88rem; margin: 0.6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.28rem 0.7rem; border-bottom: 1px solid #e6e9ed; text-align: right; white-space: nowrap; }
th { background: #f4f6f8; font-weight: 600; }
th.word, td.word { text-align: left; }
tr:hover td { background: #f8fafc; }
code { font: 0.9em ui-monospace, monospace; background: #f1f3f5; padding: 0.05em 0.3em; border-radius: 3px; }
summary { cursor: pointer; color: #1f5fa8; margin: 0.6rem 0; }
.better { color: #1c7a45; font-weight: 600; } .worse { color: #b3261e; font-weight: 600; } .none { color: #6b7280; }
"""

_MARKS = {"better": "better", "worse": "worse", "no difference shown": "none", "too few seeds to say": "none"}


def page(blocks: Sequence[Block], title: str, folder: Path) -> str:
    """The page.

    Args:
        blocks: the report.
        title: of the page.
        folder: where the pictures lie.
    """
    sections = [block.text for block in blocks if isinstance(block, Heading) and block.level == 2]
    links = "".join(f'<a href="#{_anchor(text)}">{_inline(text)}</a>' for text in sections)
    body, linked = [], False
    for block in blocks:
        if isinstance(block, Heading) and block.level == 2 and not linked:
            body.append(f"<nav>{links}</nav>")
            linked = True
        body.append(_block(block, folder))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _block(block: Block, folder: Path) -> str:
    if isinstance(block, Heading):
        anchor = f' id="{_anchor(block.text)}"' if block.level == 2 else ""
        return f"<h{block.level}{anchor}>{_inline(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return f"<p>{_inline(block.text)}</p>"
    if isinstance(block, Picture):
        data = base64.b64encode((folder / block.file).read_bytes()).decode()
        return f'<img src="data:image/png;base64,{data}" alt="{html.escape(block.shows, quote=True)}">'
    return _table(block)


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(_cell(cell, tag, i < table.words) for i, cell in enumerate(cells)) + "</tr>"

    rows = "\n".join(row(cells, "td") for cells in table.rows)
    text = (
        f'<div class="wide"><table>\n<thead>{row(table.header, "th")}</thead>\n<tbody>\n{rows}\n</tbody></table></div>'
    )
    if table.folded is None:
        return text
    return f"<details><summary>{html.escape(table.folded)}</summary>\n{text}\n</details>"


def _cell(text: str, tag: str, is_word: bool) -> str:
    mark = next((css for word, css in _MARKS.items() if tag == "td" and text.startswith(word)), "")
    css = " ".join(filter(None, ("word" if is_word else "", mark)))
    return f"<{tag}" + (f' class="{css}"' if css else "") + f">{_inline(text)}</{tag}>"


def _inline(text: str) -> str:
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", escaped)


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
