"""The notebook of the quickstart runs from an empty folder, cell by cell, in a kernel of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "quickstart.ipynb"
SHORT = {"STEPS = 200": "STEPS = 6", "eval_steps=25": "eval_steps=3", "save_steps=25": "save_steps=3"}
"""What is put in place of the length of its run."""


def outputs_of(notebook: Any) -> list[list[Any]]:
    """What each cell of code has printed or shown; installing is left out."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "skip-execution" in cells[0].metadata.tags
    assert all("skip-execution" not in cell.metadata.get("tags", []) for cell in cells[1:])
    return [cell.outputs for cell in cells[1:]]


@pytest.mark.long
def test_the_notebook_runs_from_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        for long, short in SHORT.items():
            cell.source = cell.source.replace(long, short)
    assert all(any(short in cell.source for cell in notebook.cells) for short in SHORT.values())
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    *_, trained, drawn, used = outputs_of(notebook)
    assert any("'eval_accuracy'" in output.get("text", "") for output in trained)
    assert any("image/png" in output.get("data", {}) for output in drawn)
    assert (tmp_path / "outputs" / "adapter" / "adapter_model.safetensors").is_file()
    assert len(eval(used[-1].data["text/plain"])) == 3


def test_the_notebook_is_kept_with_the_picture_that_it_draws() -> None:
    *_, drawn, _used = outputs_of(nbformat.read(NOTEBOOK, as_version=4))
    assert any("image/png" in output.get("data", {}) for output in drawn)
