"""Jupyter's own kernel runs the tutorial's notebook."""

from __future__ import annotations

from pathlib import Path

import pytest
from places import ROOT

nbformat = pytest.importorskip("nbformat", reason="for want of nbformat")
nbclient = pytest.importorskip("nbclient", reason="for want of nbclient")
pytest.importorskip("ipykernel", reason="for want of ipykernel")


@pytest.mark.filterwarnings("ignore")  # of Jupyter's own libraries
def test_jupyter_runs_the_notebook_of_the_tutorial(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "docs/tutorial.ipynb", as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = "".join(each.get("text", "") for cell in notebook.cells for each in cell.get("outputs", []))
    assert "step 300 of 300" in shown
    assert "Beautiful is better than ugly." in shown
