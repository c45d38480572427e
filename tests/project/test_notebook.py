"""Claims about the notebook: it runs to its end, its own asserts hold, and it is kept without what it printed."""

import json
import os
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs" / "guide" / "tour.ipynb"


def test_it_is_kept_without_outputs() -> None:
    cells = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert TOUR.stat().st_size < 20_000


@pytest.mark.slow
def test_every_cell_runs_and_what_it_claims_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    where = {"metadata": {"path": str(TOUR.parent)}}
    client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=where)
    client.execute()  # raises where a cell does
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") == 2
    assert sum("<audio" in output.get("data", {}).get("text/html", "") for output in outputs) == 4
    said = [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert not [text for text in said if "TqdmWarning" not in text]  # a package's bar would like to be a widget
