"""README's blocks, pasted into an empty folder, print what README shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from shown import assert_shown

BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty")


def run(command: list[str], folder: Path) -> str:
    """Standard output, in a shell where this build of ggmlgraph and this Python come first."""
    path = folder.parent / "bin"
    path.mkdir(exist_ok=True)
    lines = {"ggmlgraph": "-P -c 'from ggmlgraph.cli.main import main; main()'", "python3": ""}
    for name, arguments in lines.items():
        (path / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        (path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_block_of_readme_runs_as_it_stands_and_prints_what_readme_shows(folder: Path) -> None:
    (_, script), (_, shown) = BLOCKS[:2]
    assert BLOCKS[0][0] == "sh"
    assert_shown(shown, run(["bash", "-e", "-c", script], folder))


def test_the_program_of_readme_trains_the_same_model(folder: Path) -> None:
    language, program = BLOCKS[2]
    assert language == "python"
    (folder / "again.py").write_text(program)
    assert "step 100 of 100" in run([sys.executable, "again.py"], folder)


def test_the_figures_of_readme_are_those_of_the_page_on_performance() -> None:
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    rows = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if " layers of " in line]
    measured = dict(re.findall(r"^\| (W\d \w+(?: \w+)?) \| (.*) \|$", page, re.M))
    for name, row in zip(("W1", "W2", "W3"), rows, strict=True):
        ours, eager, compiled = ([cell.strip() for cell in measured[f"{name} {which}"].split("|")] for which in
                                 ("ours", "PyTorch eager", "PyTorch compile"))  # fmt: skip
        figures = [each.strip() for each in row.split("|")[3:-1]]
        wanted = [f"{float(ours[0]):.2f} s", f"{float(eager[5]):.2f} x", f"{float(compiled[5]):.2f} x",
                  f"{ours[7]} MiB", f"{eager[7]} MiB"]  # fmt: skip
        assert figures == wanted
