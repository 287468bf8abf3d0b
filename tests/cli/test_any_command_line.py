"""No command line, whatever its options and files are, ends but in the documented way: see commandlines.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commandlines import LINES, try_lines

from ggmlgraph.cli.main import COMMANDS

CALLS = int(os.environ.get("GGMLGRAPH_CALLS", "300"))


@pytest.mark.parametrize("seed", [1, 2])
def test_every_command_line_ends_in_one_line_and_its_status(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    calls, wrong = try_lines(CALLS, seed, tmp_path)
    assert wrong == []
    assert calls.total() == CALLS
    assert {line[0] for line in LINES} == set(calls)


def test_the_lines_are_of_every_command_that_takes_files() -> None:
    assert {line[0] for line in LINES} == set(COMMANDS) - {"doctor", "demo"}
