"""Readers: a text read bit by bit gives the logits of the text read at once; what cannot be read so is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.errors import MemoryLimitError, UnsupportedError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.generation.decoding import CHUNKS, CachedReader, WindowReader, reader_of
from ggmlgraph.models import gemma, gpt2, gpt_neox, llama, mistral, mixtral, phi2, qwen2, qwen3

N_VOCAB, CTX = 61, 48
SIZES: dict[str, Any] = {"n_vocab": N_VOCAB, "n_embd": 32, "n_head": 4, "n_layer": 2}
MODELS = {m.__name__.split(".")[-1]: m for m in (gemma, gpt2, gpt_neox, llama, mistral, mixtral, phi2, qwen2, qwen3)}
LLAMA = llama.Config(**SIZES, n_head_kv=2, n_ff=48)


def traced(path: Path, loss: Callable[..., Any], config: Any, ctx: int = CTX) -> Path:
    gg.trace(loss, config, batch=3, ctx=ctx).save(path)
    return path


def saved(path: Path, name: str) -> Path:
    model: Any = MODELS[name]
    return traced(path, model.loss, model.Config(**SIZES))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return traced(tmp_path / "g.bin", llama.loss, LLAMA)


def texts(batch: int, n: int = CTX) -> Any:
    return np.random.default_rng(0).integers(0, N_VOCAB, (batch, n)).astype(np.int32)


def assert_reads_as_at_once(runtime: Runtime, batch: int, cuts: list[int]) -> None:
    """Read texts in parts that end at `cuts`; after each, compare with the logits of the whole window."""
    tokens, reader = texts(batch, runtime.window[1]), CachedReader(runtime, batch)
    whole = runtime.at(batch=batch).forward("logits", tokens=tokens)[0].reshape(*tokens.shape, -1)
    for begin, end in zip([0, *cuts], cuts, strict=False):
        logits = reader.advance(tokens[:, begin:end])
        np.testing.assert_allclose(logits, whole[:, end - 1], atol=2e-5 * np.abs(whole).max())


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_reads_on_as_it_reads_at_once(name: str, batch: int, tmp_path: Path) -> None:
    with Runtime(saved(tmp_path / "g.bin", name), threads=2) as rt:
        assert_reads_as_at_once(rt, batch, [1, 2, 9, 40, 41, 48])


def test_a_context_of_several_blocks_of_keys(tmp_path: Path) -> None:
    with Runtime(traced(tmp_path / "g.bin", llama.loss, LLAMA, ctx=200), threads=2) as rt:
        assert_reads_as_at_once(rt, 1, [63, 64, 65, 129, 199, 200])


def test_the_logits_are_the_same_for_any_number_of_threads(tmp_path: Path) -> None:
    path = traced(tmp_path / "g.bin", llama.loss, llama.Config(**SIZES | {"n_embd": 256}, n_ff=1024))
    found = []
    for threads in (1, 3):
        with Runtime(path, threads=threads) as rt:
            reader = CachedReader(rt)
            assert reader._step.program.cost().flops > 2e6
            found.append(b"".join(reader.advance(part).tobytes() for part in np.split(texts(1, 30), [20, 21], axis=1)))
    assert found[0] == found[1]


def test_what_was_rewound_is_read_anew(graph: Path) -> None:
    with Runtime(graph, threads=1) as rt:
        reader, tokens = CachedReader(rt), texts(1, 12)
        first = reader.advance(tokens).copy()
        reader.rewind(5)
        reader.advance(tokens[:, ::-1][:, :7])
        reader.rewind(5)
        np.testing.assert_allclose(reader.advance(tokens[:, 5:]), first, atol=1e-5)


def test_programs_share_weights_and_caches(graph: Path) -> None:
    with Runtime(graph, threads=1) as rt:
        reader = CachedReader(rt)
        one, many = reader._step.program, reader._chunk(CHUNKS[-1]).program
        for name in ("token_embd.weight", "cache.k.0", "cache.v.1", "cache.n_past"):
            one.leaf(one.graph.find(name))[...] = 3
            assert (many.leaf(many.graph.find(name)) == 3).all()


def test_weights_changed_between_texts_are_used(graph: Path) -> None:
    with Runtime(graph, threads=1) as rt:
        reader = CachedReader(rt)
        reader.advance(texts(1, 3))
        rt.set("output.weight", np.zeros((N_VOCAB, 32), np.float32))
        reader.rewind(0)
        assert (reader.advance(texts(1, 3)) == 0).all()


def test_reading_a_prompt_computes_no_logits(graph: Path) -> None:
    with Runtime(graph, threads=1) as rt:
        reader = CachedReader(rt)
        chunk = reader._chunk(8)
        assert chunk.program.graph.op(chunk._cached - 1) == "cached_attention"
        assert chunk._cached < chunk._output


# ---------------------------------------------------------------- what mixes positions


def mixing(mix: Callable[[Any], Any]) -> Callable[..., Any]:
    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: llama.Config) -> gg.Tensor:
        x = p.embedding("token_embd", tokens, c.n_vocab, c.n_embd)
        x = x + llama.attention(p / "blk.0", x, c)
        return p.cross_entropy(p.linear("output", mix(x), c.n_vocab), targets)

    return loss


def shifted(x: Any) -> Any:
    """Each position joined with half of itself and half of what lies before it in memory."""
    batch, ctx, n_embd = x.shape
    return x + x.reshape(batch, n_embd, ctx).permute(0, 2, 1).cont()


def normed_over_ctx(x: Any) -> Any:
    return gg.rms_norm(x.permute(0, 2, 1).cont(), 1e-5).permute(0, 2, 1).cont()


def summed_over_ctx(x: Any) -> Any:
    return x + x.permute(0, 2, 1).cont().sum(-1, keepdims=True).permute(0, 2, 1).cont()


def products_of_positions(x: Any) -> Any:
    return gg.mul_mat(x.permute(0, 2, 1).cont(), gg.mul_mat(x, x))


def counted_from_the_end(x: Any) -> Any:
    return x + gg.arange(x.shape[1], 0, -1)[:, None]


@pytest.mark.parametrize(
    ("mix", "op"),
    [
        (counted_from_the_end, "add"),
        (normed_over_ctx, "rms_norm"),
        (summed_over_ctx, "sum_rows"),
        (products_of_positions, "mul_mat"),
        (shifted, "add"),
    ],
)
def test_an_op_that_mixes_positions_is_named_and_the_window_computed_anew(
    mix: Callable[[Any], Any], op: str, tmp_path: Path
) -> None:
    with Runtime(traced(tmp_path / "g.bin", mixing(mix), LLAMA), threads=1) as rt:
        with pytest.raises(UnsupportedError, match=rf"{op} \S* ?mixes positions"):
            CachedReader(rt)
        reader = reader_of(rt)
        assert isinstance(reader, WindowReader)
        assert re.search(rf"{op} \S* ?mixes positions", reader.slow)


def unmasked(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: llama.Config) -> gg.Tensor:
    """Attention that sees later positions."""
    batch, ctx = tokens.shape
    x = p.embedding("token_embd", tokens, c.n_vocab, c.n_embd)
    heads = x.reshape(batch, ctx, c.n_head, -1)
    q, v = heads.permute(0, 2, 1, 3), heads.permute(0, 2, 3, 1).cont()
    y = gg.mul_mat(v, gg.soft_max(gg.mul_mat(q, q))).permute(0, 2, 1, 3).reshape(batch, ctx, -1)
    return p.cross_entropy(p.linear("output", y, c.n_vocab), targets)


def test_attention_to_later_positions_is_refused(tmp_path: Path) -> None:
    with (
        Runtime(traced(tmp_path / "g.bin", unmasked, LLAMA), threads=1) as rt,
        pytest.raises(UnsupportedError, match="mixes positions"),
    ):
        CachedReader(rt)


def halves(x: Any) -> Any:
    """Ops that act on each position alone, in ways a model may write them."""
    left, right = x[..., :16].cont(), x[..., 16:].cont()
    return gg.concat([gg.silu(right), left * left], axis=-1) + gg.soft_max(x) * gg.sqr(x).sum(-1, keepdims=True)


def placed(x: Any) -> Any:
    """Vectors of positions that are counted from the text's begin."""
    table = np.random.default_rng(0).normal(size=(64, 32))
    return x + gg.gather(gg.constant(table), gg.arange(x.shape[1], dtype="i32"))


def test_positions_that_a_model_counts_go_on_where_a_text_is_read_on(tmp_path: Path) -> None:
    with Runtime(traced(tmp_path / "g.bin", mixing(placed), LLAMA), threads=1) as rt:
        assert_reads_as_at_once(rt, 2, [3, 4, 30])


def test_ops_that_act_on_each_position_alone_are_not_refused(tmp_path: Path) -> None:
    with Runtime(traced(tmp_path / "g.bin", mixing(halves), LLAMA), threads=1) as rt:
        assert_reads_as_at_once(rt, 2, [3, 4, 30])


def test_both_readers_give_the_same_logits(graph: Path) -> None:
    with Runtime(graph, threads=1) as rt:
        cached, window = CachedReader(rt, 2), WindowReader(rt, 2)
        for part in np.split(texts(2), [4, 5, 30], axis=1):
            np.testing.assert_allclose(cached.advance(part), window.advance(part), atol=1e-5)


def test_caches_count_against_the_memory_limit(graph: Path) -> None:
    with Runtime(graph, threads=1, memory_limit=100_000) as rt, pytest.raises(MemoryLimitError):
        CachedReader(rt, batch=64)


def test_a_window_of_positions_is_kept_while_a_text_is_read_on(tmp_path: Path) -> None:
    config = mistral.Config(31, 16, 2, 1, 2, 24, window=5)
    gg.trace(mistral.loss, config, batch=1, ctx=24).save(tmp_path / "g.bin", seed=3)
    runtime = gg.Runtime(tmp_path / "g.bin", threads=1)
    tokens = (np.arange(24, dtype=np.int32) * 7 % 31)[None]
    whole = runtime.forward("logits", tokens=tokens)[0].reshape(24, 31)
    reader = reader_of(runtime, 1)
    for i in range(24):
        np.testing.assert_allclose(reader.advance(tokens[:, i : i + 1])[0], whole[i], atol=1e-4)
