"""Numbers that fail: losses, gradients and states that are not finite, losses that leap. None is saved, all recover."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import ggmlgraph as gg
from ggmlgraph.data.batches import BatchData
from ggmlgraph.errors import GGError
from ggmlgraph.execution import checkpoint
from ggmlgraph.training import events
from ggmlgraph.training.config import TrainConfig
from ggmlgraph.training.console import Console, Rate
from ggmlgraph.training.loop import Loop
from ggmlgraph.training.rundir import RunDirectory, latest, step_directory, step_of, steps
from ggmlgraph.training.watch import LEAST, Watch

N, STEPS, EVERY = 4, 60, 10
Points = Annotated[gg.Tensor, gg.Float("batch", 3)]
Value = Annotated[gg.Tensor, gg.Float("batch", 1)]
Fault = Callable[[gg.Runtime, dict[str, Any]], object]  # done to the runtime or to a batch


def distance(p: gg.Params, x: Points, y: Value) -> gg.Tensor:
    """Its gradient is not finite where a prediction is right to the bit, though the loss is."""
    prediction = p.linear("out", gg.tanh(p.linear("hidden", x, 8)), 1)
    return gg.mean(gg.sqrt(gg.sqr(prediction - y)))


def batch(position: int) -> dict[str, Any]:
    x = np.random.default_rng(position).normal(size=(N, 3)).astype(np.float32)
    return {"x": x, "y": np.sin(x).sum(-1, keepdims=True)}


def in_data(rt: gg.Runtime, inputs: dict[str, Any]) -> None:
    inputs["x"][0, 0] = np.nan


def in_gradient(rt: gg.Runtime, inputs: dict[str, Any]) -> None:
    inputs["x"][...] = inputs["y"][...] = 0


def in_moments(rt: gg.Runtime, inputs: dict[str, Any]) -> None:
    rt.state()[1]["m.out.weight"][...] = np.nan


def in_weights(rt: gg.Runtime, inputs: dict[str, Any]) -> None:
    rt.weights()["out.weight"][0, 0] = np.inf


def leap(rt: gg.Runtime, inputs: dict[str, Any]) -> None:
    inputs["y"] *= 1000


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "graph.bin"
    gg.trace(distance, batch=N).save(path)
    return path


def train(
    graph: Path,
    path: Path,
    faults: dict[int, Fault],
    *,
    stops: tuple[int, ...] = (),
    **options: Any,
) -> list[int]:
    """Train with faults at some positions of the data, in as many sittings as there are stops, and one more; the
    positions whose data were asked for."""
    config = TrainConfig(**{"steps": STEPS, "warmup": 0, "schedule": "constant", "lr": 0.01, "batch": N, "ctx": 1,
                            "eval_every": EVERY, "save_every": EVERY, "predict": 0, **options})  # fmt: skip
    asked: list[int] = []
    for stop in (*stops, -1):
        console = Console(Rate(n_steps=STEPS, tokens=N, flops=1e6, peak=1e9, measure_peak=lambda: 1e9))
        with gg.Runtime(graph, threads=1) as rt, RunDirectory(path) as directory, console:

            def given(
                position: int, rt: gg.Runtime = rt, console: Console = console, stop: int = stop
            ) -> dict[str, Any]:
                inputs = batch(position)
                if position in faults:
                    faults[position](rt, inputs)
                if position == stop:
                    console.is_gone = True
                if position:
                    asked.append(position)
                return inputs

            run = Loop(rt, BatchData(given, validation=[batch(1000)]), config, directory, sample=None)
            if (found := latest(path)[0]) is not None:
                run.resume(found)
            run.run(console)
    return asked


def lines(path: Path) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock."""
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    return [{k: v for k, v in line.items() if k not in ("tokens_per_s", "elapsed_s", "memory")} for line in found]


def told(path: Path, kind: str) -> list[events.Event]:
    return [event for event in events.read(path / "events.jsonl") if event.kind == kind]


def weights(path: Path) -> bytes:
    return (step_directory(path, STEPS) / checkpoint.WEIGHTS).read_bytes()


def assert_all_finite(path: Path) -> None:
    for directory in steps(path):
        for name in checkpoint.FILES:
            for key, array in load_file(directory / name).items():
                assert np.isfinite(array).all(), f"{directory.name} {key}"


ONCE: dict[str, Fault] = {"data": in_data, "gradient": in_gradient}


def test_a_step_that_is_not_finite_is_skipped_and_the_run_goes_on(graph: Path, tmp_path: Path, check_each: Any) -> None:
    def check(where: str) -> None:
        asked = train(graph, tmp_path / where, {34: ONCE[where]})
        assert asked == list(range(1, STEPS))
        assert [event.step for event in told(tmp_path / where, "skip")] == [35]
        assert told(tmp_path / where, "rollback") == []
        assert_all_finite(tmp_path / where)
        assert lines(tmp_path / where)[-1]["val_loss"] < 1

    check_each(ONCE, check)


LASTING: dict[str, tuple[dict[int, Fault], int]] = {  # and the position at which the run goes back
    "data": (dict.fromkeys(range(33, 38), in_data), 38),
    "gradient": (dict.fromkeys(range(33, 38), in_gradient), 38),
    "data at a save": (dict.fromkeys(range(37, 42), in_data), 42),
    "moments": ({33: in_moments}, 39),
    "moments before a save": ({38: in_moments}, 41),
    "moments at a save": ({39: in_moments}, 41),
    "weights": ({33: in_weights}, 38),
    "weights at the end": ({59: in_moments}, 60),
}


def test_a_run_goes_back_to_the_last_good_checkpoint_and_past_the_data_since(
    graph: Path, tmp_path: Path, check_each: Any
) -> None:
    def check(where: str) -> None:
        faults, position = LASTING[where]
        to = 50 if position == 60 else 30
        asked = train(graph, tmp_path / where, faults)
        assert asked == list(range(1, position + STEPS - to))
        (event,) = told(tmp_path / where, "rollback")
        assert (event.step, event.facts["to"]) == (position, to)
        assert len(lines(tmp_path / where)) == STEPS
        assert_all_finite(tmp_path / where)
        assert lines(tmp_path / where)[-1]["val_loss"] < 1

    check_each(LASTING, check)


def test_a_run_that_went_back_is_the_same_wherever_it_was_stopped(graph: Path, tmp_path: Path, check_each: Any) -> None:
    faults = {**dict.fromkeys(range(33, 38), in_data), 56: in_moments}
    train(graph, tmp_path / "whole", faults)

    def check(stops: str) -> None:
        path = tmp_path / stops
        train(graph, path, faults, stops=tuple(map(int, stops.split())))
        assert lines(path) == lines(tmp_path / "whole")
        assert weights(path) == weights(tmp_path / "whole")
        assert [step_of(p) for p in steps(path)] == [step_of(p) for p in steps(tmp_path / "whole")]
        assert [p.name for p in path.glob(".*.tmp")] == []

    check_each(["29", "30", "31", "33", "36", "37", "38", "39", "47", "48", "55", "57", "58", "20 35 41 59"], check)


def test_data_that_stay_bad_end_the_run_after_three_times_and_leave_the_checkpoint(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(GGError, match="5 times in a row; going back does not help"):
        train(graph, tmp_path, dict.fromkeys(range(35, 99), in_data))
    assert len(told(tmp_path, "rollback")) == 3
    assert step_of(steps(tmp_path)[0]) == 30
    assert_all_finite(tmp_path)


def test_a_loss_that_leaps_is_told_once(graph: Path, tmp_path: Path) -> None:
    train(graph, tmp_path, {45: leap, 46: leap})
    (event,) = told(tmp_path, "spike")
    assert event.step == 46
    assert event.facts["loss"] == lines(tmp_path)[45]["loss"]
    assert event.facts["z"] > 8
    assert told(tmp_path, "rollback") == []


def test_a_run_goes_back_where_the_loss_leaps_again_and_again_if_it_is_to(graph: Path, tmp_path: Path) -> None:
    faults: dict[int, Fault] = dict.fromkeys(range(43, 48), leap)
    train(graph, tmp_path / "told", faults)
    asked = train(graph, tmp_path / "back", faults, spikes="rollback")
    assert told(tmp_path / "told", "rollback") == []
    (event,) = told(tmp_path / "back", "rollback")
    assert (event.step, event.facts["to"]) == (48, 40)
    assert asked == list(range(1, STEPS + 8))
    assert max(line["loss"] for line in lines(tmp_path / "back")[20:]) < 3


def test_the_best_checkpoint_has_a_name_and_stays(graph: Path, tmp_path: Path) -> None:
    train(graph, tmp_path, dict.fromkeys(range(22, STEPS), leap), keep=1, lr=0.05)
    values = {line["step"]: line["val_loss"] for line in lines(tmp_path) if "val_loss" in line}
    best = min(values, key=lambda step: values[step])
    assert best < STEPS
    assert (tmp_path / "best").resolve() == step_directory(tmp_path, best)
    assert [step_of(path) for path in steps(tmp_path)] == [STEPS, best]


# ---------------------------------------------------------------- what is a leap


def test_leaps_are_measured_in_deviations_that_leaps_do_not_change() -> None:
    watch, random = Watch(), np.random.default_rng(0)
    for loss in random.normal(5, 0.1, 200):
        assert watch.leap(loss) is None
    assert watch.leap(6.0) == pytest.approx(10, rel=0.2)
    before = list(watch.losses)
    assert watch.leap(1e30) is not None
    assert watch.losses == before
    assert watch.leap(5.0) is None


def test_nothing_leaps_before_there_is_enough_to_measure_by() -> None:
    watch = Watch()
    for _ in range(LEAST):
        assert watch.leap(math.exp(20)) is None
    assert watch.leap(math.exp(21)) is not None
