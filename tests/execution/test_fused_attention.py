"""Attention with windows, ALiBi, masks and soft caps is one op, which stores no scores; reading a text with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.core.passes import FUSIONS
from ggmlgraph.generation.decoding import CachedReader, WindowReader, reader_of

N_VOCAB, BATCH, CTX = 31, 2, 200
PLAIN = FUSIONS.keys() - {"attention"}


@dataclass(frozen=True)
class Config:
    """What gg.attention takes beside q, k and v."""

    window: int | None = None
    alibi: bool = False
    causal: bool = True
    mask: tuple[int, ...] = ()  # its sizes
    soft_cap: float | None = None
    trained_mask: bool = False


def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Config) -> gg.Tensor:
    x = p.embedding("token_embd", tokens, N_VOCAB, 16, init=gg.normal(1.0))
    for i in range(2):
        blk = p / f"blk.{i}"
        sizes = {"q": 4, "k": 2, "v": 2}
        q, k, v = (blk.linear(n, x, 8 * h, init=gg.normal(0.3)).reshape(*x.shape[:2], h, 8) for n, h in sizes.items())
        options: dict[str, Any] = {}
        if c.mask:
            options["mask"] = p.graph.constant("mask", mask_of(c.mask))
        if c.trained_mask:
            options["mask"] = (p / f"bias.{i}")("weight", 1, CTX)
        y = gg.attention(q, k, v, causal=c.causal, window=c.window, alibi=c.alibi, soft_cap=c.soft_cap, **options)
        x = x + blk.linear("output", y.reshape(*x.shape[:2], 32), 16, init=gg.normal(0.3))
    return p.cross_entropy(p.linear("output", x, N_VOCAB), targets)


def mask_of(sizes: tuple[int, ...]) -> Any:
    """Numbers, and a tenth of the keys hidden, but never all of a query's."""
    rng = np.random.default_rng(5)
    values = np.where(rng.random(sizes) < 0.1, -np.inf, rng.uniform(-1, 1, sizes)).astype("f")
    values[..., 0] = 0
    return values


FUSED = [
    Config(window=1), Config(window=7), Config(window=64), Config(window=130), Config(window=1000), Config(alibi=True),
    Config(alibi=True, window=50), Config(alibi=True, causal=False), Config(causal=False),
    Config(mask=(BATCH, 4, 1, CTX)), Config(mask=(BATCH, 4, 1, CTX), causal=False), Config(soft_cap=2.0),
    Config(soft_cap=0.7, causal=False), Config(mask=(CTX, CTX)), Config(mask=(BATCH, 1, CTX, CTX), causal=False),
    Config(mask=(4, CTX, CTX), soft_cap=1.5, window=70), Config(mask=(BATCH, 1, 1, CTX), alibi=True),
    Config(mask=(CTX, CTX), alibi=True, soft_cap=5.0, causal=False),
]  # fmt: skip


def export(path: Path, config: Config, ctx: int = CTX) -> Path:
    graph = gg.trace(loss, config, batch=BATCH, ctx=ctx)
    graph.save(path, seed=4)
    return path


def batch(ctx: int = CTX) -> tuple[Any, Any]:
    tokens = np.random.default_rng(0).integers(0, N_VOCAB, (BATCH, ctx + 1), np.int32)
    return tokens[:, :-1], tokens[:, 1:]


def test_fused_and_unfused_agree_and_fused_stores_no_scores(tmp_path: Path) -> None:
    for config in FUSED:
        path = export(tmp_path / "graph.bin", config)
        found = []
        for fusions in (FUSIONS, PLAIN):
            with gg.Runtime(path, threads=1, fusions=fusions) as rt:
                value = rt.backward(batch())
                graph = rt.programs.train.graph
                ops = [graph.op(i) for i in range(len(graph))]
                largest = max(int(np.prod(graph.shape(i, 4))) for i in range(len(graph)))
                found.append((value, {name: rt.gradient(name) for name in rt.params}, ops, largest))
        (one, ours, ops, largest), (other, theirs, _, _) = found
        assert ops.count("attention") == ops.count("attention_back") == 2, config
        assert largest < BATCH * 4 * CTX * CTX, config
        assert one == pytest.approx(other, rel=1e-5), config
        for name, wanted in theirs.items():
            assert np.abs(ours[name] - wanted).max() < 2e-5 * max(np.abs(wanted).max(), 1e-3), (config, name)


def test_threads_change_no_bit(tmp_path: Path) -> None:
    for config in [*FUSED[2:8:2], *FUSED[11::2]]:
        path, found = export(tmp_path / "graph.bin", config), set()
        for threads in (1, 2, 8):
            with gg.Runtime(path, threads=threads) as rt:
                rt.backward(batch())
                found.add(b"".join(rt.gradient(name).tobytes() for name in rt.params))
        assert len(found) == 1


def test_recomputation_changes_no_bit(tmp_path: Path) -> None:
    for config in FUSED[-3:]:
        path, found = export(tmp_path / "graph.bin", config), set()
        with gg.Runtime(path, threads=2, memory_limit=1 << 50) as rt:
            most = rt.programs.train.max_recompute
            needs = [rt.programs.train_at(level).cost().nbytes for level in (0, most)]
        assert needs[1] < needs[0]
        for limit in needs:
            with gg.Runtime(path, threads=2, memory_limit=limit) as rt:
                rt.backward(batch())
                found.add(b"".join(rt.gradient(name).tobytes() for name in rt.params))
        assert len(found) == 1, config


def test_gradients_in_bf16_are_near_those_in_float32(tmp_path: Path) -> None:
    for config in FUSED[-3:]:
        path, found = export(tmp_path / "graph.bin", config), []
        for precision in ("float32", "bf16"):
            with gg.Runtime(path, threads=2, matmul_precision=precision) as rt:
                rt.backward(batch())
                found.append({name: rt.gradient(name) for name in rt.params})
        for name, wanted in found[0].items():
            assert np.abs(found[1][name] - wanted).max() < 0.03 * np.abs(wanted).max(), (config, name)


def test_a_mask_that_is_trained_stays_as_it_is_written(tmp_path: Path) -> None:
    with gg.Runtime(export(tmp_path / "graph.bin", Config(trained_mask=True)), threads=1) as rt:
        graph = rt.programs.train.graph
        assert not any(graph.op(i) == "attention" for i in range(len(graph)))


def test_a_text_is_read_with_caches_only_where_they_hold_all_that_is_seen(tmp_path: Path) -> None:
    tokens = batch(40)[0][:1]
    cases = [(Config(), CachedReader), (Config(window=40), CachedReader), (Config(window=39), WindowReader),
             (Config(window=3), WindowReader), (Config(alibi=True), WindowReader),
             (Config(soft_cap=2.0), CachedReader)]  # fmt: skip
    for config, kind in cases:
        with gg.Runtime(export(tmp_path / "graph.bin", config, 40), batch=1, ctx=40, threads=1) as rt:
            wanted = rt.forward("logits", tokens=tokens)[0].reshape(40, N_VOCAB)
            reader = reader_of(rt)
            assert type(reader) is kind, config
            for i in range(0, 40, 10):
                found = reader.advance(tokens[:, i : i + 10])
                assert np.abs(found[0] - wanted[i + 9]).max() < 1e-4, (config, i)
