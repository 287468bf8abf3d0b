"""The documentation says what is true."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", ["ops", "support"])
def test_a_generated_page_is_what_the_op_table_and_the_runtime_say_now(name: str) -> None:
    page = subprocess.run([sys.executable, DOCS / f"{name}.py"], capture_output=True, text=True, check=True).stdout
    assert page == (DOCS / f"{name}.md").read_text(encoding="utf-8"), "run `make docs`"
