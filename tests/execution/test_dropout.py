"""gg.dropout: what is dropped, by whom it is seen, and what it follows from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import _philox4x32

import ggmlgraph as gg
from ggmlgraph.core import passes
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.importer import import_file, read_metadata
from ggmlgraph.core.program import Pool, Program
from ggmlgraph.errors import GGError, UsageError
from ggmlgraph.generation.decoding import reader_of
from ggmlgraph.models import llama
from ggmlgraph.table.dialect import INPUT, OUTPUT
from ggmlgraph.table.op import TABLE

N_VOCAB, N_EMBD = 31, 16
ANY_MEMORY = 1 << 50
Array = NDArray[Any]


@dataclass(frozen=True)
class Config:
    """rate: of all dropouts."""

    rate: float = 0.25


def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Config) -> gg.Tensor:
    x = gg.dropout(p.embedding("token_embd", tokens, N_VOCAB, N_EMBD), c.rate)
    for i in range(3):
        blk = p / f"blk.{i}"
        y = gg.gelu(blk.linear("up", blk.rms_norm("norm", x, 1e-5), 4 * N_EMBD))
        x = x + gg.dropout(blk.linear("down", y, N_EMBD), c.rate)
    return p.cross_entropy(p.linear("output", x, N_VOCAB), targets)


def export(path: Path, rate: float = 0.25) -> Path:
    gg.trace(loss, Config(rate), batch=4, ctx=8).save(path, seed=5)
    return path


def batch(seed: int, n: int = 4) -> tuple[Array, Array]:
    windows = np.random.default_rng(seed).integers(0, N_VOCAB, (n, 9), np.int32)
    return windows[:, :-1], windows[:, 1:]


def weights_after(rt: gg.Runtime, steps: Any) -> dict[str, bytes]:
    for step in steps:
        rt.step(batch(step, 4 * rt.accumulate), lr=1e-2)
    return {name: w.tobytes() for name, w in rt.weights().items()}


def test_threads_recomputation_and_resumption_change_no_bit(tmp_path: Path) -> None:
    path = export(tmp_path / "graph.bin")
    for accumulate in (1, 2):
        options: dict[str, Any] = {"accumulate": accumulate, "seed": 7, "memory_limit": ANY_MEMORY}
        with gg.Runtime(path, threads=1, **options) as rt:
            levels = range(rt.programs.train.max_recompute + 1)
            wanted = weights_after(rt, range(4))
        for threads in (2, 8):
            with gg.Runtime(path, threads=threads, **options) as rt:
                assert weights_after(rt, range(4)) == wanted
        for level in levels:
            with gg.Runtime(path, threads=1, **options) as rt:
                rt.programs.made = rt.programs.train_at(level)
                assert weights_after(rt, range(4)) == wanted
        with gg.Runtime(path, threads=1, **options) as rt:
            weights_after(rt, range(2))
            rt.loss(*batch(9))  # an evaluation in between
            rt.save(tmp_path / f"checkpoint{accumulate}")
        with gg.Runtime(path, threads=1, **options) as rt:
            rt.load(tmp_path / f"checkpoint{accumulate}")
            assert weights_after(rt, range(2, 4)) == wanted


def test_each_seed_step_and_micro_batch_drops_others(tmp_path: Path) -> None:
    path = export(tmp_path / "graph.bin")
    one = batch(1)
    twice = tuple(np.concatenate([x, x]) for x in one)
    with gg.Runtime(path, threads=1, seed=7) as rt, gg.Runtime(path, threads=1, seed=8) as other:
        assert rt.backward(one) == rt.backward(one) != other.backward(one)
        with gg.Runtime(path, threads=1, seed=7, accumulate=2) as parts:
            assert parts.backward((twice[0], twice[1])) != rt.backward(one)
        before = rt.backward(one)
        rt.n_steps = 1
        assert rt.backward(one) != before


def test_evaluation_drops_nothing_before_and_after_training(tmp_path: Path) -> None:
    path, plain = export(tmp_path / "graph.bin"), export(tmp_path / "plain.bin", 0.0)
    with gg.Runtime(path, threads=1) as rt, gg.Runtime(plain, threads=1) as other:
        wanted = other.loss(*batch(1))
        assert rt.loss(*batch(1)) == wanted
        assert rt.backward(batch(1)) != wanted
        assert rt.loss(*batch(1)) == wanted
        assert np.array_equal(rt.forward("logits")[0], other.forward("logits")[0])
        assert not any(op == "dropout" for op in map(rt.graph.op, range(len(rt.graph))))


def test_gradients_are_those_of_the_mask_that_was_drawn(tmp_path: Path) -> None:
    with gg.Runtime(export(tmp_path / "graph.bin"), threads=1) as rt:
        rng, step = np.random.default_rng(0), 1e-2
        for name in ("token_embd.weight", "blk.1.down.weight", "output.weight"):
            rt.backward(batch(1))
            weight = rt.weights()[name].copy()
            direction = rng.normal(size=weight.shape).astype(np.float32)
            direction /= np.linalg.norm(direction)
            slope, losses = float((rt.gradient(name) * direction).sum()), []
            for sign in (1, -1):
                rt.set(name, weight + sign * step * direction)
                losses.append(rt.backward(batch(1)))
            rt.set(name, weight)
            assert abs((losses[0] - losses[1]) / (2 * step) - slope) < 1e-4, name


def drawn(n: int, rate: float, key: tuple[int, int, int, int], stream: int = 0) -> Array:
    """Dropout of n ones."""
    graph = CoreGraph()
    ones, words = graph.leaf("f32", (n,), INPUT, "ones"), graph.leaf("i32", (4,), INPUT, "key")
    y = graph.node(TABLE["dropout"], [ones, words], {"rate": rate, "stream": stream})
    graph.set_name(y, "y", OUTPUT)
    np.frombuffer(graph.leaf_bytes(ones), np.float32)[:] = 1
    np.frombuffer(graph.leaf_bytes(words), np.int32)[:] = key
    program = Program(graph, Pool(2), None)
    program.run()
    return program.array(y).copy()


def test_ten_million_draws_have_the_mean_and_variance_of_the_rate() -> None:
    n = 10**7
    for rate in (0.1, 0.5):
        kept = drawn(n, rate, (1, 2, 3, 1)) > 0
        assert abs(kept.mean() - (1 - rate)) < 4 * (rate * (1 - rate) / n) ** 0.5
        values = drawn(n, rate, (1, 2, 3, 1))
        assert set(np.unique(values).tolist()) == {0.0, float(np.float32(1 / (1 - float(np.float32(rate)))))}
        assert abs(values.var(dtype=np.float64) - rate / (1 - rate)) < 2e-3
        pairs = kept[:-1] & kept[1:]
        assert abs(pairs.mean() - (1 - rate) ** 2) < 1e-3  # neighbours are independent


def test_masks_of_different_keys_are_independent() -> None:
    n = 10**6
    key = (1, 2, 3, 1)
    first = drawn(n, 0.5, key) > 0
    others = [drawn(n, 0.5, tuple(key[i] + (i == k) for i in range(4))) > 0 for k in range(4)]  # type: ignore[arg-type]
    for other in [*others, drawn(n, 0.5, key, stream=1) > 0]:
        assert abs((first == other).mean() - 0.5) < 4 * 0.5 / n**0.5


def test_the_reference_of_the_kernel_is_philox_as_published() -> None:
    words = _philox4x32(np.zeros((1, 4)), np.zeros(2))
    assert [hex(w) for w in words[0]] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]


def test_the_file_holds_what_stock_ggml_computes_as_nothing(tmp_path: Path) -> None:
    graph = import_file(export(tmp_path / "graph.bin"))
    metadata = read_metadata(graph)
    assert set(metadata.dropout.values()) == {0.25}
    assert len(metadata.dropout) == 4
    for name in metadata.dropout:
        node = graph.find(name)
        assert graph.op(node) == "reshape"
        assert graph.shape(graph.src(node)[0]) == graph.shape(node)


def test_rate_0_writes_nothing(tmp_path: Path) -> None:
    graph = import_file(export(tmp_path / "graph.bin", 0.0))
    assert read_metadata(graph).dropout == {}
    assert len(graph) < len(import_file(export(tmp_path / "other.bin", 0.5)))


def test_a_rate_that_is_none_is_one_line() -> None:
    for rate in (1, 1.0, -0.1, 2, float("nan"), float("inf"), 1 - 1e-12, 1e-12):
        with pytest.raises(UsageError, match=r"test_dropout.py:\d+: dropout: rate is .*, not a number from 0"):
            gg.trace(loss, Config(rate), batch=1, ctx=4)
    for none in ("0.5", None):
        with pytest.raises(TypeError, match=r"test_dropout.py:\d+: dropout: rate is .*, not a number"):
            gg.trace(loss, Config(none), batch=1, ctx=4)  # type: ignore[arg-type]


def regression(
    p: gg.Params, x: Annotated[gg.Tensor, gg.Float("batch", 64)], y: Annotated[gg.Tensor, gg.Float("batch", 1)]
) -> gg.Tensor:
    return gg.mse(p.linear("output", gg.dropout(x, 0.5), 1), y)


def test_micro_batches_of_a_loss_without_weights_draw_masks_of_their_own(tmp_path: Path) -> None:
    gg.trace(regression, batch=4).save(tmp_path / "graph.bin", seed=1)
    row = {"x": np.ones((4, 64), np.float32), "y": np.ones((4, 1), np.float32)}
    with gg.Runtime(tmp_path / "graph.bin", threads=1, accumulate=2) as rt:
        evaluated = rt.loss_of(row)
        rt.backward({name: np.concatenate([each, each]) for name, each in row.items()})
        both = rt.gradient("output.weight")
        assert rt.loss_of(row) == evaluated
        with rt.at() as one:
            one.backward(row)
            first = one.gradient("output.weight")
        assert not np.allclose(both, first)


def test_a_model_with_dropout_is_read_with_caches(tmp_path: Path) -> None:
    config = llama.Config(n_vocab=N_VOCAB, n_embd=16, n_head=2, n_layer=1, n_ff=24)

    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: llama.Config) -> gg.Tensor:
        dropping = lambda p, x, c: gg.dropout(llama.feed_forward(p, x, c), 0.5)  # noqa: E731
        return p.cross_entropy(llama.logits(p, tokens, c, feed_forward=dropping), targets)

    gg.trace(loss, config, batch=1, ctx=16).save(tmp_path / "graph.bin", seed=1)
    tokens = batch(3, 2)[0].reshape(1, 16)
    with gg.Runtime(tmp_path / "graph.bin", threads=1) as rt:
        wanted = rt.forward("logits", tokens=tokens)[0].reshape(16, N_VOCAB)
        reader = reader_of(rt)
        assert not reader.slow
        assert np.abs(reader.advance(tokens)[0] - wanted[-1]).max() < 1e-5


def test_dropout_holds_at_other_sizes(tmp_path: Path) -> None:
    with gg.Runtime(export(tmp_path / "graph.bin"), batch=2, ctx=5, threads=1) as rt:
        windows = np.zeros((2, 5), np.int32)
        assert np.isfinite(rt.step((windows, windows), lr=1e-3).loss)


def test_a_seed_that_is_none_is_refused(tmp_path: Path) -> None:
    for seed in (-1, 2**64, 1.5):
        with pytest.raises(UsageError, match=r"seed .* is not in 0"):
            gg.Runtime(export(tmp_path / "graph.bin"), seed=seed)  # type: ignore[arg-type]


def test_only_reshapes_become_dropouts(tmp_path: Path) -> None:
    graph = import_file(export(tmp_path / "graph.bin"))
    with pytest.raises(GGError, match="no reshape to the same shape"):
        passes.dropout(graph, {graph.find("logits"): 0.5})
