"""The training loop: schedules, resuming bit for bit, signals, numerical faults, failing disks."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fulldisk import file_size_limit

import ggmlgraph as gg
from ggmlgraph.cli import main
from ggmlgraph.data.corpus import SINE_ALPHABET
from ggmlgraph.data.prepare import prepared
from ggmlgraph.data.text import TextData
from ggmlgraph.errors import CheckpointError, GGError, UsageError
from ggmlgraph.execution import checkpoint
from ggmlgraph.models import baby_llama
from ggmlgraph.tokenizers.plain import CharsTokenizer
from ggmlgraph.training.config import TrainConfig
from ggmlgraph.training.console import Console, Rate
from ggmlgraph.training.loop import Loop
from ggmlgraph.training.metrics import MetricsFile, StepMetrics
from ggmlgraph.training.rundir import RunDirectory, steps

SIZES = {"batch": 2, "ctx": 16}
OPTIONS = ["--batch", "2", "--ctx", "16", "--eval-every", "7", "--save-every", "5", "--sample-every", "6",
           "--predict", "4", "--lr", "3e-3"]  # fmt: skip
COMMAND = [sys.executable, "-P", "-c", "from ggmlgraph.cli.main import main; main()"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "baby.bin"
    tokenizer = CharsTokenizer(SINE_ALPHABET).to_bytes()
    config = baby_llama.Config(n_embd=16, n_head=2, n_ff=16)
    gg.trace(baby_llama.loss, config, **SIZES).save(path, tokenizer=tokenizer, corpus="builtin:sine")
    return path


def train(graph: Path, run: Path, *options: str) -> None:
    assert main.run(["train", str(graph), "-o", str(run), *OPTIONS, *options]) == 0


def weights(run: Path, step: int) -> str:
    return hashlib.sha256((run / f"step_{step:06d}" / checkpoint.WEIGHTS).read_bytes()).hexdigest()


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("tokens_per_s", "elapsed_s", "memory")} for line in lines]


def trainer(graph: Path, path: Path, accumulate: int = 1, **options: Any) -> Loop:
    config = TrainConfig(**{"steps": 8, "warmup": 2, "save_every": 4, "eval_every": 0, **SIZES, **options})
    runtime = gg.Runtime(
        graph, threads=1, batch=config.batch, accumulate=accumulate, optimizer=config.optimizer,
        lr_of=config.lr_of, decay_of=config.decay_of,
    )  # fmt: skip
    tokens = prepared(["builtin:sine"], CharsTokenizer(SINE_ALPHABET), path / "tokens")
    data = TextData(tokens, config.ctx, config.seed, n_vocab=8)
    return Loop(runtime, data, config, RunDirectory(path), sample=None)


def console() -> Console:
    return Console(Rate(n_steps=8, tokens=32, flops=1e6, peak=1e9, measure_peak=lambda: 1e9))


# ---------------------------------------------------------------- options and schedule


def test_the_learning_rate_rises_linearly_then_falls_as_a_cosine_to_a_tenth() -> None:
    config = TrainConfig(steps=110, warmup=10, lr=1.0)
    assert [config.lr_at(step) for step in (1, 5, 10)] == [0.1, 0.5, 1.0]
    assert config.lr_at(60) == pytest.approx(0.1 + 0.9 / 2)
    assert config.lr_at(35) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert config.lr_at(110) == pytest.approx(0.1)


def test_a_linear_schedule_ends_at_a_tenth() -> None:
    config = TrainConfig(steps=110, warmup=10, lr=1.0, schedule="linear")
    assert [config.lr_at(step) for step in (10, 60, 110)] == pytest.approx([1.0, 0.55, 0.1])


def test_a_constant_schedule_stays() -> None:
    config = TrainConfig(steps=110, warmup=10, lr=1.0, schedule="constant")
    assert [config.lr_at(step) for step in (5, 11, 110)] == [0.5, 1.0, 1.0]


def test_no_warm_up_begins_at_the_peak() -> None:
    assert TrainConfig(steps=10, warmup=0, lr=1.0, schedule="constant").lr_at(1) == 1.0


@pytest.mark.parametrize(
    "option", [{"steps": 0}, {"lr": -1.0}, {"lr": math.nan}, {"clip": math.inf}, {"warmup": -1}, {"clip_value": -1.0}]
)
def test_options_out_of_range_are_usage_errors(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} "):
        TrainConfig(**option)


def test_betas_of_0_keep_the_last_gradient_alone(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    run = trainer(graph, tmp_path / "run", optimizer=gg.AdamW(beta1=0.0, beta2=0.0))
    run.run(console())
    with run.runtime:
        _, moments = run.runtime.state()
        for name in run.runtime.params:
            np.testing.assert_allclose(moments[f"v.{name}"], moments[f"m.{name}"] ** 2, rtol=1e-3)


# ---------------------------------------------------------------- the same run, whatever happens


@pytest.fixture(scope="module")
def uninterrupted(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(graph, run, "--steps", "40", "--threads", "1")
    return run


def test_the_weights_do_not_depend_on_the_number_of_threads(graph: Path, uninterrupted: Path, tmp_path: Path) -> None:
    for threads in ("2", "3", "4", "8"):
        run = tmp_path / threads
        train(graph, run, "--steps", "40", "--threads", threads)
        assert weights(run, 40) == weights(uninterrupted, 40), f"{threads} threads"
        assert metrics(run) == metrics(uninterrupted)


def start(graph: Path, run: Path) -> subprocess.Popen[str]:
    arguments = ["train", str(graph), "-o", str(run), *OPTIONS, "--steps", "40", "--threads", "1"]
    return subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    """Until the metrics have a line of that step."""
    path = run / "metrics.jsonl"
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < step):
        time.sleep(0.001)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_anywhere_and_resumed_is_the_uninterrupted_run(
    graph: Path, uninterrupted: Path, tmp_path: Path, seed: int
) -> None:
    run, random = tmp_path / "run", np.random.default_rng([seed, 41])
    process = start(graph, run)
    wait_for_step(process, run, int(random.integers(1, 38)))
    time.sleep(float(random.uniform(0, 0.004)))
    process.kill()
    process.communicate()
    train(graph, run, "--steps", "40", "--resume", "auto")
    assert weights(run, 40) == weights(uninterrupted, 40)
    assert metrics(run) == metrics(uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_command_it_names_goes_on(
    graph: Path, uninterrupted: Path, tmp_path: Path, number: int
) -> None:
    run = tmp_path / "a run"
    process = start(graph, run)
    wait_for_step(process, run, 12)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    step = len(metrics(run))
    assert (run / f"step_{step:06d}" / "state.json").exists()
    found = re.search(r"go on with: ggmlgraph (.*)", output)
    assert found is not None
    assert main.run(shlex.split(found[1])) == 0
    assert weights(run, 40) == weights(uninterrupted, 40)
    assert metrics(run) == metrics(uninterrupted)


def test_a_damaged_checkpoint_is_skipped_and_set_aside(
    graph: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(graph, run, "--steps", "40")
    (run / "step_000040" / checkpoint.WEIGHTS).write_bytes(b"torn")
    train(graph, run, "--resume", "auto")
    assert "step_000040" in capsys.readouterr().err
    assert (run / "step_000040.damaged").exists()
    assert weights(run, 40) == weights(uninterrupted, 40)
    assert metrics(run) == metrics(uninterrupted)


def test_a_checkpoint_can_be_continued_in_another_directory(graph: Path, uninterrupted: Path, tmp_path: Path) -> None:
    train(graph, tmp_path / "run", "--resume", str(uninterrupted / "step_000030"))
    assert weights(tmp_path / "run", 40) == weights(uninterrupted, 40)
    assert metrics(tmp_path / "run") == metrics(uninterrupted)[30:]


def test_going_back_in_the_same_directory_is_refused(
    graph: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(graph), "-o", str(uninterrupted), "--resume", str(uninterrupted / "step_000030")]
    assert main.run(arguments) == 2
    assert "step_000040 is later than step 30" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [(["--seed", "1"], "--seed was 0, now 1"), (["--ctx", "8"], "--ctx was 16, now 8"),
     (["--data", "{text}"], "the data are others")],
    ids=["seed", "ctx", "data"],
)  # fmt: skip
def test_what_decides_the_data_cannot_change_on_resume(
    graph: Path,
    uninterrupted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    reason: str,
) -> None:
    (tmp_path / "text").write_text(SINE_ALPHABET * 50)
    options = [option.format(text=tmp_path / "text") for option in options]
    arguments = ["train", str(graph), "-o", str(tmp_path / "run"), "--resume", str(uninterrupted / "step_000030")]
    assert main.run([*arguments, *options]) == 1
    assert reason in capsys.readouterr().err


def test_a_run_goes_on_with_another_batch_at_the_window_where_it_was(graph: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    for batch, n_steps in ((2, 4), (3, 7)):
        run = trainer(graph, tmp_path / "run", batch=batch, steps=n_steps, save_every=0)
        if seen:
            run.resume(tmp_path / "run" / "step_000004")
        samples = run.data.samples
        run.data.samples = lambda first, n, samples=samples: (seen.append((first, n)), samples(first, n))[1]
        with run.runtime, run.run_directory:
            run.run(console())
    assert seen == [(0, 2), (2, 2), (4, 2), (6, 2), (8, 3), (11, 3), (14, 3)]


def test_a_run_of_the_first_version_goes_on_in_its_own_order(graph: Path, tmp_path: Path) -> None:
    run = trainer(graph, tmp_path / "run", steps=4)
    with run.runtime, run.run_directory:
        run.run(console())
    path = tmp_path / "run" / "step_000004" / checkpoint.STATE
    manifest = json.loads(path.read_bytes())["manifest"]
    state = manifest["state"]
    assert state["progress"].pop("n_samples") == 8
    assert state["origin"].pop("order") == 2
    state["origin"]["windows_per_step"] = 2
    sealed = json.dumps(manifest)
    path.write_text(f'{{"manifest": {sealed}, "sha256": "{hashlib.sha256(sealed.encode()).hexdigest()}"}}')
    again = trainer(graph, tmp_path / "run", steps=8)
    again.resume(path.parent)
    with again.runtime, again.run_directory:
        assert (again.progress.n_samples, again.data.order, again.origin.order) == (8, 1, 1)


def test_a_batch_may_be_split_differently_on_resume(graph: Path, uninterrupted: Path, tmp_path: Path) -> None:
    at = str(uninterrupted / "step_000030")
    train(graph, tmp_path / "run", "--resume", at, "--batch", "1", "--accumulate", "2")
    ours, theirs = (metrics(run)[-1]["loss"] for run in (tmp_path / "run", uninterrupted))
    assert ours == pytest.approx(theirs, rel=1e-4)


# ---------------------------------------------------------------- what a step does


def test_accumulated_micro_batches_are_one_batch(graph: Path, tmp_path: Path) -> None:
    losses = []
    for batch, accumulate in ((4, 1), (2, 2), (1, 4)):
        run = trainer(graph, tmp_path / str(batch), accumulate, batch=batch)
        run.config = msgspec.structs.replace(run.config, accumulate=accumulate)
        assert run.run(console())
        losses.append([line["loss"] for line in metrics(tmp_path / str(batch))])
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-5)


def test_the_validation_loss_does_not_depend_on_the_batch(graph: Path, tmp_path: Path) -> None:
    values = [trainer(graph, tmp_path / str(batch), batch=batch).evaluate()[0] for batch in (1, 2, 7)]
    assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-6)


def test_training_learns(graph: Path, tmp_path: Path) -> None:
    train(graph, tmp_path / "run", "--steps", "60", "--lr", "1e-2")
    values = [line["loss"] for line in metrics(tmp_path / "run")]
    assert values[0] == pytest.approx(math.log(8), rel=0.05)
    assert values[-1] < 0.7 * values[0]


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(graph: Path, tmp_path: Path) -> None:
    run = trainer(graph, tmp_path / "run")
    good = run.runtime.get("output.weight")
    run.runtime.set("output.weight", np.full_like(good, np.nan))
    before = run.runtime.get("token_embd.weight")
    file = MetricsFile(tmp_path / "m.jsonl", 0)
    run._one_step(console(), file)
    np.testing.assert_array_equal(run.runtime.get("token_embd.weight"), before)
    assert (run.runtime.n_steps, run.progress.step, run.progress.n_skipped) == (0, 1, 1)
    run.runtime.set("output.weight", good)
    with file:
        run._one_step(console(), file)
    assert (run.runtime.n_steps, run.progress.n_skipped, run.progress.watch.n_skipped) == (1, 1, 0)


def test_five_steps_in_a_row_that_are_not_finite_end_a_run_without_checkpoints(graph: Path, tmp_path: Path) -> None:
    run = trainer(graph, tmp_path / "run")
    run.config = msgspec.structs.replace(run.config, save_every=0)
    run.runtime.set("output.weight", np.full((8, 16), np.nan, np.float32))
    with pytest.raises(GGError, match="5 times in a row"):
        run.run(console())
    assert [line["loss"] for line in metrics(tmp_path / "run")] == [None] * 5
    assert steps(tmp_path / "run") == []


def test_a_full_disk_is_told_and_training_goes_on(
    graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(graph, tmp_path / "run")
    with file_size_limit(4096):
        assert run.run(console())
    assert capsys.readouterr().out.count("no checkpoint of step") == 2
    assert len(metrics(tmp_path / "run")) == 8


# ---------------------------------------------------------------- the files of a run


def line(step: int) -> StepMetrics:
    return StepMetrics(step=step, tokens=step, loss=1.0, lr=0.1, grad_norm=1.0, tokens_per_s=1.0, elapsed_s=1.0)


def test_metrics_after_the_checkpoint_are_cut_off_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, 0) as file:
        for step in (1, 2, 3):
            assert file.write(line(step)) is None
    with path.open("ab") as torn:
        torn.write(b'{"step": 4, "tok')
    with MetricsFile(path, 2) as file:
        file.write(line(3))
    assert [json.loads(text)["step"] for text in path.read_text().splitlines()] == [1, 2, 3]


def test_metrics_that_cannot_be_written_follow_later(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, 0) as file:
        file.write(line(1))
        with file_size_limit(path.stat().st_size + 5):
            assert file.write(line(2)) == "File too large"
        assert file.write(line(3)) is None
    assert [json.loads(text)["step"] for text in path.read_text().splitlines()] == [1, 2, 3]


def test_two_trainers_cannot_share_a_directory(tmp_path: Path) -> None:
    with RunDirectory(tmp_path), pytest.raises(GGError, match="in use"):
        RunDirectory(tmp_path)


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from ggmlgraph.training.rundir import RunDirectory\n"
        "run = RunDirectory(Path(sys.argv[1])); print(1, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-P", "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with RunDirectory(tmp_path):
        pass


def test_a_run_is_not_written_over(graph: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["train", str(graph), "-o", str(uninterrupted)]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_resume_auto_in_a_new_directory_begins(graph: Path, uninterrupted: Path, tmp_path: Path) -> None:
    train(graph, tmp_path / "run", "--steps", "40", "--resume", "auto")
    assert weights(tmp_path / "run", 40) == weights(uninterrupted, 40)


def test_a_checkpoint_that_is_no_runs_cannot_be_continued(graph: Path, tmp_path: Path) -> None:
    run = trainer(graph, tmp_path / "run")
    run.runtime.save(tmp_path / "c")
    with pytest.raises(CheckpointError, match="not written by a training run"):
        run.resume(tmp_path / "c")
