"""Runtimes under everything a program may do to them at once; `python tests/stress.py SECONDS` for longer."""

from __future__ import annotations

import subprocess
import sys

from places import ROOT

SECONDS = 5


def test_threads_forks_closing_and_collecting_at_once_find_nothing() -> None:
    command = [sys.executable, "-P", "-W", "ignore", str(ROOT / "tests" / "stress.py"), str(SECONDS)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stderr) == (0, "")
    assert "'fork':" in result.stdout and "'step':" in result.stdout
