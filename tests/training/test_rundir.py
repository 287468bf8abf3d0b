"""The checkpoints of a run: which is the latest whole one, and what happens to the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.errors import CheckpointError
from ggmlgraph.execution import checkpoint
from ggmlgraph.models import llama
from ggmlgraph.training import rundir

CONFIG = llama.Config(n_vocab=11, n_embd=8, n_head=2, n_layer=1, n_ff=12)


def trained(path: Path) -> gg.Runtime:
    gg.trace(llama.loss, CONFIG, batch=2, ctx=4).save(path)
    rt = gg.Runtime(path, threads=1)
    windows = np.random.default_rng(0).integers(0, 11, (2, 5), np.int32)
    rt.step((windows[:, :-1], windows[:, 1:]), lr=1e-2)
    return rt


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_the_latest_whole_checkpoint_is_found_behind_a_damaged_one(tmp_path: Path) -> None:
    rt = trained(tmp_path / "g.bin")
    for step in (8, 9, 10):
        rt.save(rundir.step_directory(tmp_path, step))
    damage(tmp_path / "step_000010" / checkpoint.WEIGHTS)
    found, skipped = rundir.latest(tmp_path)
    assert found == tmp_path / "step_000009"
    assert ["step_000010" in str(error) for error in skipped] == [True]


def test_only_damaged_checkpoints_is_an_error_not_a_new_run(tmp_path: Path) -> None:
    trained(tmp_path / "g.bin").save(tmp_path / "step_000001")
    damage(tmp_path / "step_000001" / checkpoint.WEIGHTS)
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        rundir.latest(tmp_path)


def test_a_directory_without_checkpoints_has_no_latest(tmp_path: Path) -> None:
    assert rundir.latest(tmp_path) == (None, [])


def test_what_an_interrupted_save_left_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".step_000003.1.tmp").mkdir()
    assert rundir.steps(tmp_path) == []


def test_steps_are_ordered_by_number(tmp_path: Path) -> None:
    for name in ("step_999999", "step_1000000", "step_000002", "step_000003.damaged"):
        (tmp_path / name).mkdir()
    assert [p.name for p in rundir.steps(tmp_path)] == ["step_1000000", "step_999999", "step_000002"]


def kept(run: Path, keep: int, due_every: int = 0, keep_every: int = 0) -> list[int]:
    rundir.prune(run, keep, due_every, keep_every)
    return sorted(rundir.step_of(path) for path in rundir.steps(run))


def make(run: Path, *numbers: int) -> Path:
    for number in numbers:
        rundir.step_directory(run, number).mkdir()
    return run


def test_the_newest_checkpoints_stay_and_what_a_killed_save_left_goes(tmp_path: Path) -> None:
    (tmp_path / ".step_000009.1.tmp").mkdir()
    assert kept(make(tmp_path, 0, 1, 2, 3, 4), keep=3) == [2, 3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000002", "step_000003", "step_000004"]


def test_checkpoints_of_stops_do_not_count_but_the_newest_stays(tmp_path: Path) -> None:
    assert kept(make(tmp_path, 10, 13, 20, 21, 30, 33, 34), keep=2, due_every=10) == [20, 30, 34]


def test_multiples_are_kept_for_good(tmp_path: Path) -> None:
    assert kept(make(tmp_path, 10, 20, 30, 40, 50), keep=1, due_every=10, keep_every=20) == [20, 40, 50]


def test_a_checkpoint_with_a_name_stays_until_another_has_it(tmp_path: Path) -> None:
    make(tmp_path, 10, 20, 30)
    rundir.put_name(tmp_path, "best", 10)
    assert kept(tmp_path, keep=1) == [10, 30]
    assert (tmp_path / "best").resolve() == tmp_path / "step_000010"
    rundir.put_name(tmp_path, "best", 30)
    assert kept(tmp_path, keep=1) == [30]
    rundir.put_name(tmp_path, "best", 40)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000030"]


def test_damaged_checkpoints_are_set_aside_side_by_side(tmp_path: Path) -> None:
    for _ in range(2):
        (tmp_path / "step_000001").mkdir()
        rundir.set_aside(tmp_path / "step_000001")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000001.damaged", "step_000001.damaged1"]
