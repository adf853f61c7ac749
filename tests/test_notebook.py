"""The notebook of first steps, cell by cell, as a reader runs it."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
ROOT = Path(__file__).parent.parent


def shown(cell: Any) -> dict[str, Any]:
    """What a cell shows, by kind; nothing of it is a warning."""
    assert [output.output_type for output in cell.outputs] in (["execute_result"], []), cell.outputs
    return dict(cell.outputs[0].data) if cell.outputs else {}


def test_the_notebook_runs_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "docs").mkdir()
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    shutil.copy(ROOT / "docs/first_steps.ipynb", tmp_path / "docs")
    notebook = nbformat.read(tmp_path / "docs/first_steps.ipynb", as_version=4)
    written = [shown(cell) for cell in notebook.cells if cell.cell_type == "code"]
    place = {"metadata": {"path": str(tmp_path / "docs")}}
    nbclient.NotebookClient(notebook, timeout=None, resources=place).execute()

    cells = [shown(cell) for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.keys() for cell in cells] == [cell.keys() for cell in written]
    assert "agre_kd" in cells[0]["text/html"]
    assert cells[3]["image/png"]
    read = ast.literal_eval(cells[4]["text/plain"])
    assert read["one_hot"] < read["aver"] < read["agre_kd"]
    assert "confident" in cells[6]["text/html"]
