"""How a command ends: one line and the documented status, whatever its streams are, and for faults of our own too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ggmlgraph.cli import commands, main

COMMAND = [sys.executable, "-P", "-c", "from ggmlgraph.cli.main import main; main()"]


def shell(redirections: str, *arguments: str) -> tuple[int, str, str]:
    """Status, standard output and standard error of a command with its streams redirected by the shell."""
    command = f'"$@" {redirections}'
    result = subprocess.run(["sh", "-c", command, "sh", *COMMAND, *arguments], capture_output=True, text=True)
    return result.returncode, result.stdout, result.stderr


def test_a_closed_standard_output_swallows_what_is_said_and_no_file_takes_its_place(tmp_path: Path) -> None:
    graph = str(tmp_path / "g.bin")
    arguments = ["export", "llama", "n_embd=16", "n_head=2", "n_layer=1", "n_ff=24", "-o", graph]
    assert shell(">&-", *arguments) == (0, "", "")
    assert shell(">&- 2>&- <&-", "inspect", graph, "--nodes") == (0, "", "")


def test_a_standard_output_without_space_is_one_line_of_error() -> None:
    assert shell(">/dev/full", "models") == (1, "", "ggmlgraph: error: No space left on device\n")


@pytest.mark.parametrize("streams", [">/dev/full 2>/dev/full", "2>&-", "2>/dev/full"])
def test_an_error_that_nobody_hears_keeps_its_status(streams: str) -> None:
    assert shell(streams, "inspect", "none.bin") == (1, "", "")


def test_a_fault_of_our_own_is_one_line_with_its_place_and_how_to_see_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a\n\x1b[31m")

    monkeypatch.setattr(commands, "import_module", fail)
    assert main.run(["doctor"]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("ggmlgraph: error: a fault of ggmlgraph at cli/commands.py:")
    assert errors.endswith("ZeroDivisionError: a \\x1b[31m; GGMLGRAPH_DEBUG=1 shows the traceback, to report it\n")
    assert errors.count("\n") == 1


def test_an_argument_that_would_steer_the_terminal_is_shown_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["\x1b[31m"], ["inspect", "a\x1b]0;x\x07"], ["inspect", "x", "\x9b"], ["export", "\x1b"]):
        assert main.run(arguments) in (1, 2)
        assert capsys.readouterr().err.rstrip("\n").isprintable()
