"""What a person sees of a run: on terminals of 80 columns, on dumb ones, in pipes."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import COLUMNS, Terminal

import ggmlgraph as gg
from ggmlgraph.models import llama
from ggmlgraph.tokenizers.plain import BytesTokenizer
from ggmlgraph.training.console import Console, Rate, shown_sample
from ggmlgraph.training.metrics import StepMetrics

STEPS, EVERY = 40, 8
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
ESCAPE = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")  # what rich moves the cursor and erases lines with


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "g.bin"
    config = llama.Config(n_embd=16, n_head=2, n_layer=1, n_ff=24, n_vocab=256)
    gg.trace(llama.loss, config, batch=2, ctx=8).save(path, tokenizer=BytesTokenizer().to_bytes())
    return path


def options(graph: Path, run: Path) -> list[str]:
    return ["train", str(graph), "--data", "builtin:sine", "--steps", str(STEPS), "--eval-every", str(EVERY),
            "--sample-every", "10", "--predict", "40", "--threads", "1", "-o", str(run)]  # fmt: skip


def on_terminal(graph: Path, run: Path, kind: str) -> str:
    with Terminal(options(graph, run), TERM=kind) as terminal:
        return terminal.read().replace("\r\n", "\n")


def lines_that_stay(shown: str) -> list[str]:
    """What a terminal shows in the end: rich writes the live line and erases it again."""
    lines, row = [""], 0
    for piece in re.split("(\x1b\\[[0-9;?]*[A-Za-z]|\r|\n)", shown):
        if piece == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif piece == "\x1b[1A":
            row -= 1
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif not piece.startswith(("\x1b", "\r")):
            lines[row] += piece
    return lines


def test_every_line_of_progress_on_80_columns_tells_when_it_ends(graph: Path, tmp_path: Path) -> None:
    shown = on_terminal(graph, tmp_path / "run", "xterm")
    live = [
        part for part in re.split("\x1b\\[[0-9;?]*[A-Za-z]|\r|\n", shown) if part.startswith("step ") and "loss" in part
    ]
    assert len(live) >= STEPS
    assert [part for part in live if "ETA" not in part[:COLUMNS]] == []
    assert [part for part in live if len(part) > COLUMNS and "val" not in part] == []


@pytest.mark.parametrize("kind", ["xterm", "dumb", "pipe"])
def test_every_validation_has_a_line_that_stays_and_no_other_line_has_its_number(
    graph: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "pipe":
        command = [sys.executable, "-P", "-c", "from ggmlgraph.cli.main import main; main()"]
        arguments = [*command, *options(graph, tmp_path / "run")]
        shown = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    else:
        shown = on_terminal(graph, tmp_path / "run", kind)
    kept = [int(found[1]) for line in lines_that_stay(shown) if (found := re.match(r"step +(\d+)/\d+ .* val ", line))]
    assert kept == list(range(EVERY, STEPS + 1, EVERY))
    assert re.search(r"step +\d+/\d+ +ETA \d+:\d\d", shown)


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_samples_say_their_step_and_steer_no_terminal(graph: Path, tmp_path: Path, kind: str) -> None:
    shown = ESCAPE.sub("", on_terminal(graph, tmp_path / "run", kind)).replace("\r", "")
    assert re.findall(r"sample, step (\d+):", shown) == ["10", "20", "30", "40"]
    assert CONTROL.findall(shown) == []
    assert "\\x" in shown  # a model that has learnt nothing writes such bytes


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
@pytest.mark.parametrize("command", [["generate"], ["generate", "-p", "a", "-p", "b"]], ids=" ".join)
def test_generated_text_steers_no_terminal(graph: Path, kind: str, command: list[str]) -> None:
    with Terminal([command[0], str(graph), "-n", "200", *command[1:]], TERM=kind) as terminal:
        shown = terminal.read().replace("\r\n", "\n")
    assert CONTROL.findall(shown) == []
    assert "\\x" in shown


def test_generated_text_in_a_pipe_is_as_the_model_writes_it(graph: Path) -> None:
    command = [
        sys.executable,
        "-P",
        "-c",
        "from ggmlgraph.cli.main import main; main()",
        "generate",
        str(graph),
        "-n",
        "200",
    ]
    shown = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    assert CONTROL.findall(shown) != []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a\nb"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("\x7f\r\x00", "\\x7f\\x0d\\x00"),
        ("\u202eabc", "\\u202eabc"),
        (":smile: [red]", ":smile: [red]"),
        ("é日😀", "é日😀"),
    ],
)
def test_a_sample_shows_what_is_in_it(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown_sample(7, text) == f"sample, step 7: {shown}"
    with Console(Rate(n_steps=8, tokens=32, flops=1e6, peak=1e9, measure_peak=lambda: 1e9)) as console:
        console.sample(7, text)
    assert capsys.readouterr().out == f"sample, step 7: {shown}\n"


class Lost(io.StringIO):
    """A terminal that is no longer there."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("number", "is_gone"), [(errno.EIO, True), (errno.EPIPE, True), (errno.EBADF, True), (errno.ENOSPC, False)]
)
@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_a_lost_terminal_is_noticed_and_is_no_error(
    number: int, is_gone: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setattr(sys, "stdout", Lost(number))
    line = StepMetrics(step=1, tokens=1, loss=1.0, lr=0.1, grad_norm=1.0, tokens_per_s=1.0, elapsed_s=1.0)
    with Console(Rate(n_steps=3, tokens=32, flops=1e6, peak=1e9, measure_peak=lambda: 1e9)) as console:
        for _ in range(2):
            console.progress(line)
            console.sample(1, "text")
            console.acknowledge()
    monkeypatch.undo()
    assert console.is_gone == is_gone


def test_a_number_of_an_earlier_validation_is_not_shown_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggmlgraph.training.console.PLAIN_EVERY", 0.0)
    with Console(Rate(n_steps=3, tokens=32, flops=1e6, peak=1e9, measure_peak=lambda: 1e9)) as console:
        for step, val in ((1, 2.5), (2, None), (3, None)):
            console.progress(
                StepMetrics(step=step, tokens=1, loss=1.0, lr=0.1, grad_norm=1.0, tokens_per_s=1.0, elapsed_s=1.0,
                            val_loss=val, val_accuracy=None if val is None else 0.5)
            )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert ["val" in line for line in lines] == ["right" in line for line in lines] == [True, False, False]
