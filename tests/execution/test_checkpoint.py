"""Checkpoints: round trip, damage, other graphs, failing writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fulldisk import file_size_limit

import ggmlgraph as gg
from ggmlgraph.errors import CheckpointError
from ggmlgraph.execution import checkpoint
from ggmlgraph.models import llama

CONFIG = llama.Config(n_vocab=11, n_embd=8, n_head=2, n_layer=1, n_ff=12)


def open_graph(path: Path, config: llama.Config = CONFIG, seed: int = 0, **sizes: int) -> gg.Runtime:
    gg.trace(llama.loss, config, batch=2, ctx=4).save(path, seed=seed)
    return gg.Runtime(path, threads=1, **sizes)


def trained(path: Path, steps: int = 2) -> gg.Runtime:
    rt = open_graph(path)
    for i in range(steps):
        windows = np.random.default_rng(i).integers(0, 11, (2, 5), np.int32)
        rt.step((windows[:, :-1], windows[:, 1:]), lr=1e-2)
    return rt


def arrays(rt: gg.Runtime) -> dict[str, Any]:
    weights, moments = rt.state()
    return {name: array.copy() for name, array in {**weights, **moments}.items()}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_loaded_checkpoint_is_what_was_saved(tmp_path: Path) -> None:
    rt = trained(tmp_path / "g.bin")
    checkpoint.save(rt, tmp_path / "step_000002", {"position": 7})
    other = open_graph(tmp_path / "h.bin", seed=1)
    assert checkpoint.load(other, tmp_path / "step_000002") == {"position": 7}
    assert other.n_steps == 2
    for name, array in arrays(rt).items():
        np.testing.assert_array_equal(arrays(other)[name], array)


def test_a_checkpoint_loads_at_another_batch_and_ctx(tmp_path: Path) -> None:
    rt = trained(tmp_path / "g.bin")
    rt.save(tmp_path / "c")
    other = open_graph(tmp_path / "h.bin", seed=1, batch=3, ctx=8)
    other.load(tmp_path / "c")
    np.testing.assert_array_equal(other.get("output.weight"), rt.get("output.weight"))


def test_weights_alone_can_be_loaded(tmp_path: Path) -> None:
    rt = trained(tmp_path / "g.bin")
    rt.save(tmp_path / "c")
    (tmp_path / "c" / checkpoint.OPTIMIZER).unlink()
    other = open_graph(tmp_path / "h.bin", seed=1)
    checkpoint.load_weights(other, tmp_path / "c")
    np.testing.assert_array_equal(other.get("output.weight"), rt.get("output.weight"))


def test_a_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    rt = trained(tmp_path / "g.bin")
    rt.save(tmp_path / "c")
    with pytest.raises(CheckpointError, match="never overwritten"):
        rt.save(tmp_path / "c")


@pytest.mark.parametrize("file", [checkpoint.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.STATE])
def test_one_flipped_bit_is_noticed_before_a_weight_changes(tmp_path: Path, file: str) -> None:
    trained(tmp_path / "g.bin").save(tmp_path / "c")
    flip(tmp_path / "c" / file, (tmp_path / "c" / file).stat().st_size - 20)
    other = open_graph(tmp_path / "h.bin", seed=1)
    before = arrays(other)
    with pytest.raises(CheckpointError, match=file):
        other.load(tmp_path / "c")
    assert other.n_steps == 0
    for name, array in arrays(other).items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("file", [checkpoint.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.STATE])
def test_a_missing_file_is_named(tmp_path: Path, file: str) -> None:
    rt = trained(tmp_path / "g.bin")
    rt.save(tmp_path / "c")
    (tmp_path / "c" / file).unlink()
    with pytest.raises(CheckpointError, match=file):
        rt.load(tmp_path / "c")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (replace(CONFIG, n_vocab=12), "output.weight is f32.12, 8. in the graph, f32.11, 8. in the checkpoint"),
        (replace(CONFIG, n_layer=2), "blk.1.attn_k.weight is f32.8, 8. in the graph, nothing in the checkpoint"),
        (replace(CONFIG, rope_freq_base=500.0), "same parameters, other operations"),
    ],
    ids=["sizes", "layers", "operations"],
)
def test_a_checkpoint_of_another_graph_changes_nothing(tmp_path: Path, config: llama.Config, reason: str) -> None:
    trained(tmp_path / "g.bin").save(tmp_path / "c")
    other = open_graph(tmp_path / "h.bin", config)
    before = arrays(other)
    with pytest.raises(CheckpointError, match=f"another graph: {reason}"):
        other.load(tmp_path / "c")
    for name, array in arrays(other).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    rt = trained(tmp_path / "g.bin")
    with file_size_limit(2048), pytest.raises(CheckpointError, match=r"cannot be written: .*too large"):
        rt.save(tmp_path / "c")
    assert [p.name for p in tmp_path.iterdir()] == ["g.bin"]


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    rt = trained(tmp_path / "g.bin")
    rt.set("output.weight", np.full((11, 8), np.inf, np.float32))
    with pytest.raises(CheckpointError, match=r"output.weight has values that are not finite"):
        rt.save(tmp_path / "c")
    assert not (tmp_path / "c").exists()
