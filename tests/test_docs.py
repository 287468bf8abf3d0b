"""The documentation says what is true."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from places import ROOT
from test_floors import FLOORS

import ggmlgraph as gg

DOCS = ROOT / "docs"


PAGES = {
    "ops": ["ops.py"],
    "internal-ops": ["ops.py", "internal"],
    "api": ["api.py"],
    "errors": ["errors.py"],
    "support": ["support.py"],
}


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_what_the_code_says_now(name: str) -> None:
    script, *arguments = PAGES[name]
    command = [sys.executable, str(DOCS / script), *arguments]
    page = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert page == (DOCS / f"{name}.md").read_text(encoding="utf-8"), "run `make docs`"


def test_messages_and_pages_name_only_public_names_that_exist() -> None:
    wrong = {"rms_nrm", "swiglu"}  # of the page of slips
    pages = [*DOCS.rglob("*.md"), ROOT / "README.md", *(ROOT / "ggmlgraph").rglob("*.py")]
    for path in pages:
        named = set(re.findall(r"(?<![\w.])gg\.([A-Za-z]\w*)\(", path.read_text(encoding="utf-8")))
        assert named - {"name"} - (wrong if path.name == "errors.md" else set()) <= set(dir(gg)), path


def test_internals_list_the_floors_from_the_top_with_every_module() -> None:
    page = (DOCS / "internals.md").read_text(encoding="utf-8")
    table = page[page.index("| folder of `ggmlgraph/` |") :].partition("\n\n")[0]
    rows = {cells[1].strip(" `"): cells[2] for cells in (line.split("|") for line in table.splitlines()[2:])}
    assert [row for row in rows if "/" not in row] == [*FLOORS[:-1], "the ground"]
    for folder, listed in rows.items():
        path = ROOT / "ggmlgraph" / ("" if folder == "the ground" else folder)
        named = set(re.findall(r"`([^`]+)`", listed))
        there = {module.stem for module in path.glob("*.py")} - {"__init__"}
        assert named <= there and (named == there or " and one a " in listed), folder
