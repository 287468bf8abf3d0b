"""The documentation says what is true."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_reference_of_ops_is_the_table() -> None:
    page = subprocess.run([sys.executable, DOCS / "ops.py"], capture_output=True, text=True, check=True).stdout
    assert page == (DOCS / "ops.md").read_text(encoding="utf-8")
