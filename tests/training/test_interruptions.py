"""Runs that are interrupted anywhere end as if they never were (interruptions.py); all of them by INTERRUPTIONS=all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

ALL = os.environ.get("INTERRUPTIONS") == "all"


@pytest.mark.parametrize(
    ("kind", "some", "every_one"),
    [("calls", 97, 1), ("kills", 5, 300), ("stops", 5, 300), ("flips", 1000, 10_000)],
)
def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path: Path, kind: str, some: int, every_one: int) -> None:
    """calls: of so many calls that write to the disk, one fails or is the last; flips: damage is always noticed."""
    if kind == "calls" and shutil.which("cc") is None:
        pytest.skip("no C compiler to make failing calls with")
    command = [sys.executable, "-P", ROOT / "tests" / "interruptions.py", tmp_path / "x", kind]
    done = subprocess.run([*command, str(every_one if ALL else some)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    print(done.stdout.splitlines()[-1])
