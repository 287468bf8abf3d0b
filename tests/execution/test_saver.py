"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from safetensors.numpy import load_file

import ggmlgraph as gg
from ggmlgraph.errors import CheckpointError
from ggmlgraph.execution import checkpoint
from ggmlgraph.execution.saver import Saver
from ggmlgraph.models import llama

CONFIG = llama.Config(n_vocab=11, n_embd=8, n_head=2, n_layer=1, n_ff=12)


@pytest.fixture
def rt(tmp_path: Path) -> gg.Runtime:
    gg.trace(llama.loss, CONFIG, batch=2, ctx=4).save(tmp_path / "g.bin")
    return gg.Runtime(tmp_path / "g.bin", threads=1)


def step(rt: gg.Runtime) -> gg.StepResult:
    windows = np.random.default_rng(0).integers(0, 11, (2, 5), np.int32)
    return rt.step((windows[:, :-1], windows[:, 1:]), lr=1e-2)


def nothing() -> None:
    pass


def test_a_checkpoint_has_what_was_there_when_it_began_however_slow_the_disk_is(rt: gg.Runtime, tmp_path: Path) -> None:
    step(rt)
    weights, moments = ({k: v.copy() for k, v in arrays.items()} for arrays in rt.state())
    with Saver(rt) as saver:
        saver.start(tmp_path / "c", {}, before=lambda: time.sleep(0.3), after=nothing)
        for _ in range(3):
            step(rt)
        assert saver.take(wait=True)
    assert checkpoint.verify(tmp_path / "c").n_steps == 1
    for name, arrays in ((checkpoint.WEIGHTS, weights), (checkpoint.OPTIMIZER, moments)):
        for key, array in load_file(tmp_path / "c" / name).items():
            np.testing.assert_array_equal(array, arrays[key])


def test_steps_do_not_wait_for_what_comes_after_the_copy(rt: gg.Runtime, tmp_path: Path) -> None:
    step(rt)
    stepped = Event()
    with Saver(rt) as saver:
        saver.start(tmp_path / "c", {}, before=nothing, after=lambda: stepped.wait(60))
        for _ in range(3):
            step(rt)
        assert not saver.take(wait=False)
        stepped.set()
        assert saver.take(wait=True)
        assert not saver.take(wait=True)


@pytest.mark.parametrize("what", ["weights", "moments"])
def test_a_state_that_is_not_finite_is_told_at_the_next_step_and_not_saved(
    rt: gg.Runtime, tmp_path: Path, what: str
) -> None:
    step(rt)
    weights, moments = rt.state()
    (weights if what == "weights" else moments).popitem()[1].reshape(-1)[-1] = np.inf
    with Saver(rt) as saver:
        saver.start(tmp_path / "c", {}, before=nothing, after=nothing)
        step(rt)
        with pytest.raises(CheckpointError, match="not finite"):
            saver.take(wait=False)
    assert [path.name for path in tmp_path.iterdir()] == ["g.bin"]


def test_steps_go_on_after_a_save_that_failed(rt: gg.Runtime, tmp_path: Path) -> None:
    step(rt)
    (tmp_path / "c").mkdir()
    with Saver(rt) as saver:
        saver.start(tmp_path / "c", {}, before=nothing, after=nothing)
        step(rt)
        with pytest.raises(CheckpointError, match="never overwritten"):
            saver.take(wait=True)
    step(rt)
