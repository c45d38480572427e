"""Tests of the notebook: it runs without errors, and is stored without outputs."""

import json
import os
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs" / "guide" / "tour.ipynb"


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert TOUR.stat().st_size < 20_000


@pytest.mark.slow
def test_every_cell_runs_and_the_asserts_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    resources = {"metadata": {"path": str(TOUR.parent)}}
    client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources)
    client.execute()  # raises if a cell raises
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") == 2
    assert sum("<audio" in output.get("data", {}).get("text/html", "") for output in outputs) == 4
    printed = [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert not [text for text in printed if "TqdmWarning" not in text]  # tqdm warns that it has no widget
