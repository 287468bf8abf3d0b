"""The documentation says what is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", ["ops", "support"])
def test_a_generated_page_is_what_the_op_table_and_the_runtime_say_now(name: str) -> None:
    page = subprocess.run([sys.executable, DOCS / f"{name}.py"], capture_output=True, text=True, check=True).stdout
    assert page == (DOCS / f"{name}.md").read_text(encoding="utf-8"), "run `make docs`"


def test_internals_say_what_every_module_of_the_package_is_for() -> None:
    page = (DOCS / "internals.md").read_text(encoding="utf-8")
    rows = page[page.index("| modules of `ggmlgraph/` |") :].partition("\n\n")[0]
    package = DOCS.parent / "ggmlgraph"
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert modules | folders <= set(re.findall(r"`([^`]+)`", rows))
