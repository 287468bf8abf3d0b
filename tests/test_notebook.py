"""The tutorial's notebook runs, and shows what it printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import notebooks
from places import ROOT
from shown import assert_shown

NOTEBOOK = notebooks.read(ROOT / "docs/tutorial.ipynb")


def text(outputs: list[dict[str, Any]]) -> str:
    """Of a cell, as people read it."""
    return "\n".join("".join(each.get("text") or each["data"]["text/plain"]) for each in outputs)


def test_the_notebook_shows_what_its_cells_print(tmp_path: Path) -> None:
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    for cell, outputs in zip(cells, notebooks.run(NOTEBOOK, tmp_path), strict=True):
        assert_shown(text(cell["outputs"]), text(outputs))
        assert [sorted(each.get("data", {})) for each in cell["outputs"]] == [
            sorted(each.get("data", {})) for each in outputs
        ]


def test_graphs_and_models_show_themselves_as_html() -> None:
    shown = [each["data"] for cell in NOTEBOOK["cells"] for each in cell.get("outputs", []) if "data" in each]
    pages = ["".join(data["text/html"]) for data in shown if "text/html" in data]
    assert len(pages) >= 3
    assert all((page.startswith("<") and "parameters" in page) or "Outcome" in page for page in pages)
