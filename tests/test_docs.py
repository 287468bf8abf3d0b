"""The documentation says what is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT
from test_floors import FLOORS

import ggmlgraph as gg

DOCS = ROOT / "docs"


PAGES = {
    "language": ["language.py"],
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


def test_the_lines_beside_those_of_others_train(tmp_path: Path) -> None:
    page = (DOCS / "from-others.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(re.findall(r"## Here\n\n```python\n(.*?)```", page, re.S)[0], names)
    gg.trace(names["loss"], batch=2, ctx=8).save(tmp_path / "graph.bin")
    tokens = np.arange(32, dtype=np.int32).reshape(4, 8)
    with gg.Runtime(tmp_path / "graph.bin", threads=1, batch=4) as rt:
        losses = [rt.step((tokens, tokens), lr=1e-2).loss for _ in range(20)]
    assert losses[-1] < losses[0] / 2
