"""No command line, whatever its options and files are, ends but in the documented way: see commandlines.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commandlines import LINES, make_files, trial, try_lines

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
    assert {line[0] for line in LINES} == set(COMMANDS) - {"doctor", "demo", "dash"}


def test_no_file_of_a_run_that_is_a_pipe_keeps_a_command_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_files(tmp_path / "files")
    files = [path for path in Path("run").rglob("*") if path.is_file() and path.name != ".lock"]
    assert len(files) >= 8
    for path in files:
        kept = path.rename("kept")
        os.mkfifo(path)
        for words in (
            ["generate", "run", "-p", "a", "-n", "1"],
            ["report", "run", "-o", "out.html"],
            ["metrics", "run", "--csv", "out.csv"],
            ["train", "run/graph.bin", "-o", "run", "--resume", "auto", "--data", "text.txt", "--steps", "1"],
            ["train", "graph.bin", "--input", f"tokens={path}", "-o", "out", "--steps", "1"],
        ):
            assert (words, path, trial(words)) == (words, path, None)
        path.unlink()
        kept.rename(path)
