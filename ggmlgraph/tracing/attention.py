"""`attention`: each query's mean of the values, weighted by how its key agrees; written in ggml's own ops.

Stock ggml computes the file as it stands. The runtime fuses all of it, but for masks that are trained, into an op that
never stores the scores (runtime/src/fuse.c). Used by models.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from ggmlgraph.errors import ShapeError, UsageError
from ggmlgraph.table import ops
from ggmlgraph.tracing.tensor import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    mask: Tensor | None = None,
    alibi: bool | Tensor = False,
    window: int | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale * q @ k.T + mask) @ v for each head (Vaswani et al. 2017).

    q: (batch, ctx, n_head, head_dim); k, v: (batch, ctx_k, n_head_kv, head_dim), each head of which serves
    n_head / n_head_kv heads of q -> shape of q.

    causal: query i sees keys 0 to i. window: of those only the last `window`, itself among them; the file holds for
    any ctx, shorter ones too. mask: float32, sizes those of (batch, n_head, ctx, ctx_k), or 1, or absent in front;
    added to the scaled scores, so -inf hides a key. alibi: scores fall linearly with the distance of the key (Press et
    al. 2022), each head by a slope of its own: True for the paper's slopes, or a tensor of n_head slopes. soft_cap:
    scores are soft_cap * tanh(scores / soft_cap) before any mask (Gemma Team 2024, section 2). scale: default
    1 / sqrt(head_dim).

    Raises ShapeError for shapes that do not fit, UsageError for a window, cap or scale that is none.
    """
    _check_shapes(q, k, v)
    _check_numbers(q, causal=causal, window=window, soft_cap=soft_cap, scale=scale)
    head_dim = q.shape[3]
    scale = head_dim**-0.5 if scale is None else scale
    q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 1, 3), v.permute(0, 2, 3, 1).cont()
    scores = ops.mul_mat(k, q)  # (batch, n_head, ctx, ctx_k)
    scores = scores * scale if soft_cap is None else ops.tanh(scores * (scale / soft_cap)) * soft_cap
    if alibi is not False:
        scores = scores + _alibi(scores, alibi)
    if mask is not None:
        scores = scores + mask
    if causal:
        scores = ops.diag_mask_inf(scores)
    if window is not None:  # seen from the keys, queries are masked that come too long after
        of_keys = ops.diag_mask_inf(scores.permute(0, 1, 3, 2).cont(), window - 1)
        scores = of_keys.permute(0, 1, 3, 2).cont()
    y = ops.mul_mat(v, ops.soft_max(scores))  # (batch, n_head, ctx, head_dim)
    return y.permute(0, 2, 1, 3).cont()


def _alibi(scores: Tensor, slopes: bool | Tensor) -> Tensor:
    """Each head's slope times the key's position, (n_head, 1, ctx_k): less the slope times the query's position, which
    a softmax does not see, it is minus the slope times their distance."""
    _, n_head, _, ctx = scores.shape
    graph = scores.graph
    if not isinstance(slopes, Tensor):
        slopes = graph.constant(f"alibi_slopes.{n_head}", alibi_slopes(n_head))
    elif slopes.shape != (n_head,):
        raise ShapeError(f"{graph.here()}: attention: alibi is {slopes!r}, not one slope for each of {n_head} heads")
    positions = graph.input("positions_f32", (ctx,), "f32", feed="positions_f32")
    return ops.repeat(positions.reshape(1, 1, ctx), shape=(n_head, 1, ctx)) * slopes.reshape(n_head, 1, 1)


def alibi_slopes(n_head: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """The paper's slopes, float32 (n_head,): 2^(-8 i / n) for a power of two n, and for what is beyond one those of
    twice as many heads, every other one."""
    n = 1 << (n_head.bit_length() - 1)
    first = 2.0 ** (-8 / n * np.arange(1, n + 1))
    others = 2.0 ** (-4 / n * np.arange(1, 2 * (n_head - n), 2))
    return np.concatenate([first, others]).astype(np.float32)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    where = f"{q.graph.here()}: attention: "
    for name, x in (("q", q), ("k", k), ("v", v)):
        if len(x.shape) != 4:
            raise ShapeError(f"{where}{name} is {x!r}, not (batch, ctx, n_head, head_dim)")
    for (one, x), (other, y) in pairwise((("q", q), ("k", k), ("v", v))):
        if x.shape[0] != y.shape[0] or x.shape[3] != y.shape[3]:
            raise ShapeError(f"{where}{one} = {x!r} and {other} = {y!r} differ in batch or head_dim")
    if k.shape != v.shape:
        raise ShapeError(f"{where}k = {k!r} and v = {v!r} differ")
    if q.shape[2] % k.shape[2]:
        raise ShapeError(f"{where}{k.shape[2]} heads of k = {k!r} do not divide the {q.shape[2]} of q = {q!r}")


def _check_numbers(q: Tensor, *, causal: bool, window: int | None, soft_cap: float | None, scale: float | None) -> None:
    where = f"{q.graph.here()}: attention: "
    if window is not None and (not isinstance(window, int) or isinstance(window, bool) or not 1 <= window < 2**31):
        raise UsageError(f"{where}window is {window!r}, not a whole number of positions from 1 on, or None")
    if window is not None and not causal:
        raise UsageError(f"{where}a window of the last {window} positions is of causal attention")
    for name, value in (("soft_cap", soft_cap), ("scale", scale)):
        if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise UsageError(f"{where}{name} is {value!r}, not a number above 0")
