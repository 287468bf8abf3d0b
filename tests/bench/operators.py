"""Models written with numpy's broadcasting beside the same in ggml's own ops, so chosen that nothing is repeated.

Both, and the first without the fusion of repeats, take turns step by step in one process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from report import paired_ratio, save, seconds_of, show

import ggmlgraph as gg
from ggmlgraph.core.passes import FUSIONS
from ggmlgraph.table import ops
from ggmlgraph.tracing.attention import alibi_slopes

N_VOCAB, BATCH, CTX = 2048, 8, 128
N_IN, N_CLASSES, N_ROWS = 784, 10, 512
Features = Annotated[gg.Tensor, gg.Float("batch", "n_in")]
Labels = Annotated[gg.Tensor, gg.Ids("batch")]


@dataclass(frozen=True)
class Config:
    """operators: whether the model is written with them."""

    operators: bool
    n_in: int = N_IN
    n_embd: int = 256
    n_head: int = 8
    n_layer: int = 4


def heads(p: gg.Params, x: gg.Tensor, c: Config) -> list[gg.Tensor]:
    return [p.linear(n, x, c.n_embd).reshape(*x.shape[:2], c.n_head, c.n_embd // c.n_head) for n in "qkv"]


def attend(p: gg.Params, x: gg.Tensor, c: Config, **options: Any) -> gg.Tensor:
    return p.linear("o", gg.attention(*heads(p, x, c), **options).reshape(*x.shape), c.n_embd)


def llama_like(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Config) -> gg.Tensor:
    """RMS norms whose gain stands first, and a scale for each layer's part of the residual (Touvron et al. 2021)."""

    def norm(q: gg.Params, x: gg.Tensor) -> gg.Tensor:
        gain = q("gain", c.n_embd, init=gg.ones())
        return gain * gg.rms_norm(x, 1e-6) if c.operators else ops.mul(gg.rms_norm(x, 1e-6), gain)

    def scaled(q: gg.Params, x: gg.Tensor, y: gg.Tensor) -> gg.Tensor:
        scale = q("scale", c.n_embd, init=gg.full(0.1))
        return x + scale[None, None] * y if c.operators else ops.add(x, ops.mul(y, scale))

    x = p.embedding("token_embd", tokens, N_VOCAB, c.n_embd)
    for i in range(c.n_layer):
        a, f = p / f"blk.{i}.attn", p / f"blk.{i}.ffn"
        x = scaled(a, x, attend(a, norm(a, x), c))
        h = norm(f, x)
        h = gg.silu(f.linear("gate", h, 2 * c.n_embd)) * f.linear("up", h, 2 * c.n_embd)
        x = scaled(f, x, f.linear("down", h, c.n_embd))
    return p.cross_entropy(p.linear("output", norm(p, x), N_VOCAB), targets)


def neox_like(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Config) -> gg.Tensor:
    """ALiBi: an outer product of slopes and positions, beside one that is kept as it is."""
    bias = -np.outer(alibi_slopes(c.n_head), np.arange(CTX)[::-1]).astype("f")
    slopes = p.graph.constant("slopes", alibi_slopes(c.n_head))
    positions = p.graph.constant("places", np.arange(1 - CTX, 1).astype("f"))
    kept = p.graph.constant("bias", bias.reshape(c.n_head, 1, CTX))
    x = p.embedding("token_embd", tokens, N_VOCAB, c.n_embd)
    for i in range(c.n_layer):
        blk = p / f"blk.{i}"
        mask = slopes[:, None, None] * positions[None, None] if c.operators else kept
        h = blk.layer_norm("norm", x, 1e-5)
        part = gg.gelu(blk.linear("up", h, 4 * c.n_embd))
        x = x + attend(blk, h, c, mask=mask) + blk.linear("down", part, c.n_embd)
    return p.cross_entropy(p.linear("output", x, N_VOCAB), targets)


def gated_classifier(p: gg.Params, x: Features, y: Labels, c: Config) -> gg.Tensor:
    """Highways (Srivastava et al. 2015) of softsign, gated by 1 / (1 + exp(-x))."""
    n = x.shape[0]
    ones = p.graph.constant("ones", np.ones((n, c.n_embd), "f"))
    one = p.graph.constant("one", np.ones(1, "f"))
    h = p.linear("in", x, c.n_embd)
    for i in range(c.n_layer):
        layer = p / f"layer.{i}"
        a, z = layer.linear("a", h, c.n_embd), layer.linear("z", h, c.n_embd)
        if c.operators:
            a = a / (1 + gg.abs(a))
            z = 1 / (1 + gg.exp(-z))
            h = z * a + (1 - z) * h
        else:
            a = ops.div(a, ops.add(gg.abs(a), one))
            z = ops.div(ones, ops.add(gg.exp(ops.neg(z)), one))
            h = ops.add(ops.mul(z, a), ops.mul(ops.add(ops.neg(z), one), h))
    return gg.cross_entropy(p.linear("out", h, N_CLASSES), y)


def text(rng: np.random.Generator) -> Any:
    windows = rng.integers(0, N_VOCAB, (BATCH, CTX + 1), np.int32)
    return windows[:, :-1], windows[:, 1:]


def pictures(rng: np.random.Generator) -> Any:
    return {"x": rng.normal(size=(N_ROWS, N_IN)).astype("f"), "y": rng.integers(0, N_CLASSES, N_ROWS, np.int32)}


MODELS: list[tuple[Callable[..., gg.Tensor], dict[str, int], Callable[[np.random.Generator], Any]]] = [
    (llama_like, {"batch": BATCH, "ctx": CTX}, text),
    (neox_like, {"batch": BATCH, "ctx": CTX}, text),
    (gated_classifier, {"batch": N_ROWS}, pictures),
]


def runtimes(loss: Callable[..., gg.Tensor], sizes: dict[str, int], threads: int, directory: Path) -> list[gg.Runtime]:
    """By hand, by operators, by operators with repeats stored."""
    found = []
    for name, operators, left_out in (("hand", False, ""), ("operators", True, ""), ("stored", True, "repeat")):
        path = directory / f"{name}.bin"
        gg.trace(loss, Config(operators), **sizes).save(path)
        found.append(gg.Runtime(path, threads=threads, fusions=FUSIONS.keys() - {left_out}))
    return found


def main(out: Path, threads: int, rounds: int) -> None:
    """Measure, print, save."""
    rows, result = [], []
    for loss, sizes, batch in MODELS:
        with tempfile.TemporaryDirectory() as directory:
            contenders = runtimes(loss, sizes, threads, Path(directory))
        rng = np.random.default_rng(0)
        seconds: list[list[float]] = [[], [], []]
        for turn in range(5 * rounds + 2):
            given = batch(rng)
            for k, rt in enumerate(contenders):
                taken = seconds_of(lambda rt=rt, given=given: rt.step(given, lr=1e-4))  # type: ignore[misc]
                seconds[k] += [taken] if turn > 1 else []
        hand, operators, stored = seconds
        planned = [rt.programs.train.cost().nbytes / 2**20 for rt in contenders]
        rows.append((loss.__name__, min(hand), paired_ratio(operators, hand), paired_ratio(stored, hand), *planned))
        result.append({"model": loss.__name__, "seconds": seconds, "planned_mib": planned})
    head = ["model", "s by hand", "operators", "repeats stored", "MiB by hand", "operators", "repeats stored"]
    show(f"operators, {threads} threads, {5 * rounds} steps each in turns; times by hand", head, rows)
    save(out, "operators", threads, result)
