"""What a person sees of a run: on terminals of any width, on dumb ones, without colour, in tmux, in pipes."""

from __future__ import annotations

import errno
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from terminal import Terminal

import ggmlgraph as gg
from ggmlgraph.models import llama
from ggmlgraph.tokenizers.plain import BytesTokenizer
from ggmlgraph.training.console import Console, Rate
from ggmlgraph.training.metrics import StepMetrics
from ggmlgraph.training.trend import Trend

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


def on_terminal(graph: Path, run: Path, kind: str, columns: int = 80, **environment: str) -> str:
    with Terminal(options(graph, run), columns=columns, TERM=kind, **environment) as terminal:
        return terminal.read().replace("\r\n", "\n")


class Screen:
    """What a terminal shows after each time that its cursor is where a line is written: lines, and all of the past."""

    def __init__(self, shown: str) -> None:
        self.lines, self.pictures, row = [""], [], 0
        for piece in re.split("(\x1b\\[[0-9;?]*[A-Za-z]|\r|\n)", shown):
            if piece == "\n":
                row += 1
                self.lines += [""] * (row == len(self.lines))
            elif piece == "\x1b[1A":
                row -= 1
            elif piece == "\x1b[2K":
                self.pictures.append("\n".join(self.lines))
                self.lines[row] = ""
            elif not piece.startswith(("\x1b", "\r")):
                self.lines[row] += piece

    @property
    def live(self) -> set[str]:
        """Lines that were seen and are gone."""
        seen = {line for picture in self.pictures for line in picture.splitlines()}
        return {line for line in seen - set(self.lines) if re.search("[━─]|^loss ", line)}


@pytest.mark.parametrize("columns", [12, 40, 80, 200])
def test_a_bar_that_says_when_it_ends_and_a_curve_of_the_loss_fit_the_terminal(
    graph: Path, tmp_path: Path, columns: int
) -> None:
    live = Screen(on_terminal(graph, tmp_path / "run", "xterm", columns)).live
    bars, curves = ({line for line in live if line.startswith(each)} for each in (("━", "─"), "loss "))
    assert curves
    assert [line for line in live if len(line) >= columns] == []
    if columns >= 40:
        assert bars
        assert [line for line in bars if not re.search(r" \d+%  ETA \d+:\d\d  step +\d+/40$", line)] == []
        assert any(re.search("[▁▂▃▄▅▆▇█]{3}", line) for line in curves)
    if columns >= 80:
        assert any(re.search(r" [\d,]+ tokens/s  grad \d", line) for line in curves)
    if columns == 200:
        assert any(line.endswith("of peak") for line in curves)


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_colours_are_for_those_who_want_them(graph: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    shown = on_terminal(graph, tmp_path / "run", **{"kind": environment.pop("TERM", "xterm"), **environment})
    colours = re.findall("\x1b\\[(?:[0-9]+;)*3[0-9](?:;[0-9]+)*m", shown)
    assert bool(colours) == ("\x1b" in shown and not environment)


def test_a_terminal_without_signs_has_a_bar_of_those_it_has(graph: Path, tmp_path: Path) -> None:
    environment = {"PYTHONIOENCODING": "ascii:backslashreplace", "PYTHONUTF8": "0"}
    shown = on_terminal(graph, tmp_path / "run", "xterm", **environment)
    assert not re.search("[━─▁▂▃▄▅▆▇█]", shown)
    assert re.search(r"#+-*  +\d+%  ETA", ESCAPE.sub("", shown))


@pytest.mark.skipif(shutil.which("tmux") is None, reason="want: no tmux on PATH")
def test_tmux_shows_the_bar_and_keeps_the_validations(graph: Path, tmp_path: Path) -> None:
    arguments = options(graph, tmp_path / "run")
    arguments[arguments.index("--steps") + 1] = "100000"
    main = shlex.join([sys.executable, "-P", "-c", "from ggmlgraph.cli.main import main; main()", *arguments])
    tmux = ["tmux", "-S", str(tmp_path / "socket"), "-f", "/dev/null"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TMUX")}

    def ask(*words: str) -> str:
        return subprocess.run([*tmux, *words], capture_output=True, text=True, check=True, env=environment).stdout

    ask("new-session", "-d", "-x", "80", "-y", "24", main)
    try:
        shown, deadline = "", time.monotonic() + 60
        while not re.search(r"val .*\n(.*\n)*[━─]", shown) and time.monotonic() < deadline:
            time.sleep(0.2)
            shown = ask("capture-pane", "-p")
    finally:
        ask("kill-server")
    lines = shown.rstrip("\n").splitlines()
    assert re.fullmatch(r"[━─]+ +\d+%  ETA \d[\d:]+  step +\d+/100000", lines[-2])
    assert re.match(r"loss \d\.\d{4} [▁▂▃▄▅▆▇█]+ ", lines[-1])
    assert all(line[0] not in "━─" for line in lines[:-2] if line)  # what is live leaves nothing behind


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
    kept = [int(found[1]) for line in Screen(shown).lines if (found := re.match(r"step +(\d+)/\d+ .* val ", line))]
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


def test_a_curve_of_a_line_shows_where_no_loss_was_finite() -> None:
    trend = Trend()
    for step in range(10):
        trend.add(None if step == 4 else 10.0 - step)
    assert trend.drawn(20) == "██▇▆×▄▃▂▁▁"
    assert trend.drawn(0) == ""


def test_a_curve_of_a_line_keeps_its_shape_however_long_the_run_is() -> None:
    trend = Trend()
    for step in range(100_000):
        trend.add(10.0 - step / 10_000)
    assert list(trend.drawn(10)) == sorted(trend.drawn(10), reverse=True)
    assert trend.drawn(10)[0] == "█"
    assert 128 <= len(trend.drawn(1000)) <= 256
