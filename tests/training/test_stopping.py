"""How a run is stopped: by every signal that asks for it, in the middle of a long step too, and by a lost terminal."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from terminal import Terminal

import ggmlgraph as gg
from ggmlgraph.cli import main
from ggmlgraph.execution import checkpoint
from ggmlgraph.models import llama
from ggmlgraph.tokenizers.plain import BytesTokenizer
from ggmlgraph.training.rundir import steps

SOON = 5.0  # seconds; what is measured takes milliseconds
LONGEST = 120  # seconds that a process may take to end
ASKING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
IN_C = """
import hashlib, sys
from ggmlgraph.training.stopping import StopRequest
with StopRequest(lambda: print("noticed", flush=True)) as stop:
    print("listening", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(sys.argv[1]))  # one call of C that looks at no signals
    print("asked", stop.asked, flush=True)
print("end", flush=True)
"""
LONG, SHORT = "1000000000", "1000000"


def in_c(n: str, ignored: signal.Signals | None = None) -> subprocess.Popen[str]:
    """A process that is in the middle of a long call of C."""

    def ignore() -> None:
        if ignored:
            signal.signal(ignored, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "-P", "-c", IN_C, n], stdout=subprocess.PIPE, text=True, preexec_fn=ignore
    )
    assert line_of(process) == "listening"
    return process


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_in_the_middle_of_a_long_step_is_acknowledged_at_once(number: signal.Signals) -> None:
    process = in_c(LONG)
    started = time.monotonic()
    process.send_signal(number)
    assert line_of(process) == "noticed"
    assert time.monotonic() - started < SOON
    process.kill()
    process.communicate(timeout=LONGEST)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_one_ends_a_long_step_at_once(first: signal.Signals, second: signal.Signals) -> None:
    process = in_c(LONG)
    process.send_signal(first)
    assert line_of(process) == "noticed"
    started = time.monotonic()
    process.send_signal(second)
    process.communicate(timeout=LONGEST)
    assert process.returncode == -second
    assert time.monotonic() - started < SOON


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_terminal_that_closes_and_a_scheduler_may_say_it_twice(number: signal.Signals) -> None:
    process = in_c(SHORT)
    process.send_signal(number)
    assert line_of(process) == "noticed"
    for again in (number, signal.SIGHUP, signal.SIGTERM):
        process.send_signal(again)
    assert process.communicate(timeout=LONGEST)[0].split() == ["asked", "True", "end"]
    assert process.returncode == 0


@pytest.mark.parametrize("number", ASKING)
def test_what_the_caller_ignores_stays_ignored(number: signal.Signals) -> None:
    process = in_c(SHORT, number)
    process.send_signal(number)
    assert process.communicate(timeout=LONGEST)[0].split() == ["asked", "False", "end"]


def test_nothing_is_asked_where_no_signal_came() -> None:
    process = in_c(SHORT)
    assert process.communicate(timeout=LONGEST)[0].split() == ["asked", "False", "end"]


def test_handlers_are_afterwards_what_they_were() -> None:
    from ggmlgraph.training.stopping import StopRequest

    before = [signal.getsignal(number) for number in ASKING]
    with StopRequest(lambda: None):
        assert [signal.getsignal(number) for number in ASKING] != before
    assert [signal.getsignal(number) for number in ASKING] == before
    assert signal.set_wakeup_fd(-1) == -1


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "g.bin"
    config = llama.Config(n_embd=16, n_head=2, n_layer=1, n_ff=24, n_vocab=256)
    gg.trace(llama.loss, config, batch=2, ctx=8).save(path, tokenizer=BytesTokenizer().to_bytes())
    return path


def options(graph: Path, run: Path, n: int) -> list[str]:
    return ["train", str(graph), "--data", "builtin:sine", "--steps", str(n), "--eval-every", "100", "--save-every",
            "1000", "--predict", "4", "--sample-every", "50", "--threads", "1", "-o", str(run)]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main.run(options(graph, run, 600)) == 0
    return (run / "step_000600" / checkpoint.WEIGHTS).read_bytes()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def n_lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def assert_goes_on(graph: Path, run: Path, uninterrupted: bytes) -> None:
    """There is a checkpoint of the last step, and from it the run ends as if it had not been stopped."""
    assert steps(run)[0].name == f"step_{n_lines(run):06d}"
    checkpoint.verify(steps(run)[0])
    assert main.run([*options(graph, run, 600), "--resume", "auto"]) == 0
    assert (run / "step_000600" / checkpoint.WEIGHTS).read_bytes() == uninterrupted


@pytest.mark.parametrize("number", ASKING)
def test_every_signal_saves_and_the_run_goes_on_to_the_same_weights(
    graph: Path, uninterrupted: bytes, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-P", "-c", "from ggmlgraph.cli.main import main; main()", *options(graph, run, 600)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: n_lines(run) >= 10)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert "stopping: this step is finished and saved first" in output
    assert "go on with: ggmlgraph train" in output
    assert_goes_on(graph, run, uninterrupted)


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_a_terminal_that_closes_saves(graph: Path, uninterrupted: bytes, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    with Terminal(options(graph, run, 600), TERM=kind) as terminal:
        wait_until(lambda: n_lines(run) >= 10)
        terminal.close()
        assert terminal.process.wait(60) == 1  # nobody could be told how it ended
    assert_goes_on(graph, run, uninterrupted)


def test_a_terminal_that_closes_unheard_saves(graph: Path, uninterrupted: bytes, tmp_path: Path) -> None:
    """As under nohup: no signal, but writing to the terminal fails."""
    run = tmp_path / "run"
    with Terminal(options(graph, run, 600), ignored=signal.SIGHUP) as terminal:
        wait_until(lambda: n_lines(run) >= 10)
        terminal.close()
        assert terminal.process.wait(60) == 1  # nobody could be told how it ended
    assert_goes_on(graph, run, uninterrupted)


def test_a_reader_that_leaves_early_loses_nothing(graph: Path, uninterrupted: bytes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-P", "-c", "from ggmlgraph.cli.main import main; main()", *options(graph, run, 600)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    wait_until(lambda: n_lines(run) >= 1)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1
    assert_goes_on(graph, run, uninterrupted)
