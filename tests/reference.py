"""The oracle of the op tests: every op in numpy float64, and the samples it is tested on.

`REFERENCE[op](*operands, **params)` takes arrays in numpy order (None for an absent operand) and is written from the
definition in the op's docstring or paper, on purpose without a look at the C or at the derivative rules. Sized ops
take `shape`; `view` also takes `strides`, bytes in numpy order. `WRITES` gives what an op leaves in its operands.
`SAMPLES[op]` are the inputs. Used by the tests of every ISA level, of gradients, and of this module itself.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]

F32, F16 = 0, 1  # ggml's numbers of element types
ITEM = 4  # bytes of a float32 or int32 element, the unit of offsets and strides

# ---------------------------------------------------------------- shapes


def _with_rank(a: Array, rank: int) -> Array:
    """Put axes of size 1 in front."""
    return a.reshape((1,) * (rank - a.ndim) + a.shape) if a.ndim < rank else a


def _tile(a: Array, shape: Shape) -> Array:
    a = _with_rank(a, len(shape))
    return np.tile(a, [large // small for large, small in zip(shape, a.shape, strict=True)])


def _sum_tiles(a: Array, shape: Shape) -> Array:
    """Add up the tiles of size `shape` that a consists of."""
    rank = max(a.ndim, len(shape))
    a, small = _with_rank(a, rank), (1,) * (rank - len(shape)) + shape
    split = [n for size, part in zip(a.shape, small, strict=True) for n in (size // part, part)]
    return a.reshape(split).sum(axis=tuple(range(0, 2 * rank, 2))).reshape(shape)


def _group_repeat(a: Array, shape: Shape) -> Array:
    """Repeat each matrix of a so that the axes before the last two become those of `shape`."""
    a = _with_rank(a, len(shape))
    for axis in range(len(shape) - 2):
        a = np.repeat(a, shape[axis] // a.shape[axis], axis)
    return a


def _sum_groups(a: Array, shape: Shape) -> Array:
    """Add up the matrices of a that shared one matrix of `shape`."""
    small = (1,) * (a.ndim - len(shape)) + shape
    for axis in range(a.ndim - 2):
        split = (*a.shape[:axis], small[axis], a.shape[axis] // small[axis], *a.shape[axis + 1 :])
        a = a.reshape(split).sum(axis + 1)
    return a.reshape(shape)


# ---------------------------------------------------------------- elementwise


def _sigmoid(a: Array) -> Array:
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1.0, e) / (1.0 + e)


def _normal_cdf(a: Array) -> Array:
    return 0.5 * np.vectorize(math.erfc, otypes=[np.float64])(-a / math.sqrt(2.0))


def _normal_pdf(a: Array) -> Array:
    return np.exp(-0.5 * a * a) / math.sqrt(2.0 * math.pi)


def _gelu_argument(a: Array) -> Array:
    """2u, for 0.5 (1 + tanh u) = sigmoid(2u)."""
    return 2.0 * math.sqrt(2.0 / math.pi) * (a + 0.044715 * a**3)


def _hardsigmoid(a: Array) -> Array:
    return np.clip((a + 3) / 6, 0, 1)


def _silu(a: Array) -> Array:
    return a * _sigmoid(a)


def _silu_back(g: Array, a: Array) -> Array:
    s = _sigmoid(a)
    return g * (s + a * s * (1.0 - s))


def _gelu_back(g: Array, a: Array) -> Array:
    s = _sigmoid(_gelu_argument(a))
    return g * (s + a * s * (1.0 - s) * 2.0 * math.sqrt(2.0 / math.pi) * (1.0 + 3.0 * 0.044715 * a**2))


def _gelu_erf_slope(a: Array) -> Array:
    return _normal_cdf(a) + a * _normal_pdf(a)


# ---------------------------------------------------------------- rows


def _norm(a: Array, eps: float) -> Array:
    centred = a - a.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)


def _rows_sum(a: Array) -> Array:
    return a.reshape(-1, a.shape[-1]).sum(0)


def _norm_back(g: Array, a: Array, eps: float) -> Array:
    y, variance = _norm(a, eps), a.var(-1, keepdims=True)
    return (g - g.mean(-1, keepdims=True) - y * (g * y).mean(-1, keepdims=True)) / np.sqrt(variance + eps)


def _rms_norm(a: Array, eps: float) -> Array:
    return a / np.sqrt((a**2).mean(-1, keepdims=True) + eps)


def _rms_norm_back(g: Array, a: Array, eps: float) -> Array:
    square = (a**2).mean(-1, keepdims=True) + eps
    return g / np.sqrt(square) - a * (g * a).mean(-1, keepdims=True) / square**1.5


def _group_norm(a: Array, n_groups: int, eps: float = 1e-6, back: Array | None = None) -> Array:
    """Groups of channels (axis -3) in turn; with `back` the cotangent of a."""
    whole = _with_rank(a, 4)
    y, g = np.empty_like(whole), None if back is None else _with_rank(back, 4)
    width = -(-whole.shape[1] // n_groups)
    for begin in range(0, whole.shape[1], width):
        part = slice(begin, begin + width)
        rows = whole[:, part].reshape(len(whole), -1)
        done = _norm(rows, eps) if g is None else _norm_back(g[:, part].reshape(len(whole), -1), rows, eps)
        y[:, part] = done.reshape(whole[:, part].shape)
    return y.reshape(a.shape)


def _alibi(n_head: int, max_bias: float) -> Array:
    """Press et al. 2022: slopes 2^(-max_bias k / n) for n heads, a power of two; more heads lie between those."""
    n = 2 ** int(math.log2(n_head))
    steps = np.array([k + 1 if k < n else k - n + 0.5 for k in range(n_head)])
    return np.asarray(2.0 ** (-max_bias * steps / n))


def _soft_max(a: Array, mask: Array | None = None, scale: float = 1.0, max_bias: float = 0.0) -> Array:
    z = a * scale
    if mask is not None:
        whole = _with_rank(a, 4)
        slopes = _alibi(whole.shape[1], max_bias)[:, None, None]
        z = (z + slopes * mask.reshape(-1, a.shape[-1])[: whole.shape[-2]]).reshape(a.shape)
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _soft_max_back(g: Array, y: Array, scale: float) -> Array:
    return scale * y * (g - (g * y).sum(-1, keepdims=True))


def _above_diagonal(a: Array, n_past: int) -> Array:
    rows, columns = np.indices(_with_rank(a, 2).shape[-2:])
    above = columns > rows + n_past
    return above[0] if a.ndim == 1 else above


def _diag_mask(value: float) -> Callable[..., Array]:
    return lambda a, n_past=0: np.where(_above_diagonal(a, n_past), value, a)


# ---------------------------------------------------------------- products


def _mul_mat(a: Array, b: Array, prec: int = 0) -> Array:
    rank = max(a.ndim, b.ndim, 2)
    b = _with_rank(b, rank)
    return b @ _group_repeat(_with_rank(a, rank), b.shape).swapaxes(-1, -2)


def _mul_mat_back(g: Array, b: Array, shape: Shape) -> Array:
    rank = max(g.ndim, b.ndim, len(shape), 2)
    return _sum_groups(_with_rank(g, rank).swapaxes(-1, -2) @ _with_rank(b, rank), shape)


def _out_prod(a: Array, b: Array) -> Array:
    rank = max(a.ndim, b.ndim, 2)
    b = _with_rank(b, rank)
    return b.swapaxes(-1, -2) @ _group_repeat(_with_rank(a, rank), b.shape)


def _mul_mat_id(a: Array, b: Array, ids: Array) -> Array:
    b = _with_rank(b, 3)
    rows = np.tile(b, (1, ids.shape[-1] // b.shape[-2], 1))
    return np.einsum("tumk,tuk->tum", a[ids], rows)


def _mul_mat_id_rows_back(a: Array, g: Array, ids: Array) -> Array:
    return np.einsum("tumk,tum->tuk", a[ids], g)


def _mul_mat_id_back(g: Array, b: Array, ids: Array, shape: Shape) -> Array:
    matrices = np.zeros(shape)
    rows = np.tile(b, (1, ids.shape[-1] // b.shape[-2], 1))
    np.add.at(matrices, ids, np.einsum("tum,tuk->tumk", g, rows))
    return matrices


# ---------------------------------------------------------------- layout


def _part(a: Array, dim: int, shape: Shape) -> Array:
    places = [slice(n) for n in shape]
    if dim >= 0:
        places[-1 - dim] = slice(a.shape[-1 - dim] - shape[-1 - dim], None)
    return a[(0,) * (a.ndim - len(shape)) + tuple(places)]


def _pad(a: Array, shape: Shape) -> Array:
    a = _with_rank(a, len(shape))
    return np.pad(a, [(0, large - small) for small, large in zip(a.shape, shape, strict=True)])


def _copied(small: Shape, large: Shape) -> tuple[Array, ...]:
    """The element of each copy; ggml divides in float32."""
    pairs = zip(np.indices(large), small, large, strict=True)
    return tuple(
        np.minimum(np.floor(i.astype(np.float32) / (np.float32(m) / np.float32(n))).astype(int), n - 1)
        for i, n, m in pairs
    )


def _upscale_back(g: Array, shape: Shape) -> Array:
    y = np.zeros(shape)
    np.add.at(y, _copied(shape, g.shape), g)
    return y


def _diag(a: Array) -> Array:
    a = _with_rank(a, 2)
    return np.eye(a.shape[-1]) * a.astype(np.float64)


def _set_window(shape: Shape, nb: tuple[int, ...], offset: int) -> Array:
    return _window(shape, offset, (*nb[::-1], ITEM)[4 - len(shape) :])


def _set(how: str) -> Callable[..., Array]:
    def set_(a: Array, b: Array, nb1: int, nb2: int, nb3: int, offset: int, inplace: int = 0) -> Array:
        y = a.astype(np.float64).reshape(-1)
        places = _set_window(b.shape, (nb1, nb2, nb3), offset)
        y[places] = {"set": b, "acc": y[places] + b, "clear": 0.0 * b}[how]
        return y.reshape(a.shape)

    return set_


def _window(shape: Shape, offset: int, strides: Sequence[int]) -> Array:
    """For each element of a view its number in the flat memory."""
    steps = zip(np.indices(shape), strides, strict=True)
    return np.asarray(offset // ITEM + sum(index * (stride // ITEM) for index, stride in steps))


def _view(a: Array, offset: int, shape: Shape, strides: Shape) -> Array:
    """A view in numpy too, so that _view_back sees where it lies."""
    nb = [stride // ITEM * a.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(a.reshape(-1)[offset // ITEM :], shape, nb)


def _view_back(g: Array, y: Array, a: Array, total: Array | None = None) -> Array:
    """An y that is no view of a lies dense at its beginning."""
    whole = np.zeros(a.shape) if total is None else total.reshape(a.shape).copy()
    at, nb = 0, np.empty(y.shape).strides
    if np.may_share_memory(y, a):
        at, nb = y.__array_interface__["data"][0] - a.__array_interface__["data"][0], y.strides
    np.add.at(whole.reshape(-1), _window(y.shape, at // a.itemsize * ITEM, [n // a.itemsize * ITEM for n in nb]), g)
    return whole


def _permute(a: Array, axis0: int, axis1: int, axis2: int, axis3: int) -> Array:
    """ggml counts dimensions from the last axis: dimension i is numpy axis 3 - i."""
    order = [0] * 4
    for i, axis in enumerate((axis0, axis1, axis2, axis3)):
        order[3 - axis] = 3 - i
    return _with_rank(a, 4).transpose(order)


def _permute_back(a: Array, axis0: int, axis1: int, axis2: int, axis3: int) -> Array:
    return _with_rank(a, 4).transpose([3 - axis for axis in (axis3, axis2, axis1, axis0)])


def _get_rows(a: Array, ids: Array) -> Array:
    tables = _with_rank(a, 3)
    lists = _with_rank(ids, 3)
    rows = tables[np.arange(tables.shape[-3])[:, None], lists]
    return rows.reshape(*ids.shape, a.shape[-1])


def _get_rows_back(g: Array, ids: Array, shape: Shape) -> Array:
    tables = np.zeros((1,) * (3 - len(shape)) + shape)
    lists = _with_rank(ids, 3)
    np.add.at(tables, (np.arange(tables.shape[0])[:, None], lists), g.reshape(*lists.shape, shape[-1]))
    return tables.reshape(shape)


# ---------------------------------------------------------------- dropout


def _philox4x32(counter: Array, key: Array) -> Array:
    """Philox4x32-10 (Salmon et al. 2011): counters uint64 (n, 4) and a key (2,) of 32 bits each -> words (n, 4)."""
    mask = np.uint64(0xFFFFFFFF)
    c, k = counter.astype(np.uint64), np.asarray(key, np.uint64)
    for _ in range(10):
        first, second = c[:, 0] * np.uint64(0xD2511F53), c[:, 2] * np.uint64(0xCD9E8D57)
        c = np.stack([second >> np.uint64(32) ^ c[:, 1] ^ k[0], second & mask,
                      first >> np.uint64(32) ^ c[:, 3] ^ k[1], first & mask], 1)  # fmt: skip
        k = (k + np.array([0x9E3779B9, 0xBB67AE85], np.uint64)) & mask
    return c


def _dropout(a: Array, key: Array, rate: float, stream: int = 0) -> Array:
    seed, step, part = key[:2].astype(np.uint64), int(key[2]), int(key[3])
    if part == 0:
        return a
    own = _philox4x32(np.array([[stream, step, part, 0]]), seed)[0, :2]
    element = np.arange(a.size)
    column, word = element // 64 * 16 + element % 16, element % 64 // 16
    counters = np.stack([column, 0 * column, 0 * column, 0 * column], 1)
    drawn = _philox4x32(counters, own)[element, word].reshape(a.shape)
    rate = float(np.float32(rate))
    return np.where(drawn >= int(rate * 2**32), a / (1 - rate), 0.0)


# ---------------------------------------------------------------- order


def _argmax(a: Array) -> Array:
    return a.shape[-1] - 1 - np.argmax(a[..., ::-1], -1)


def _argsort(a: Array, order: int = 0) -> Array:
    return np.argsort(-a if order else a, axis=-1, kind="stable")


# ---------------------------------------------------------------- made of numbers


def _timestep_angles(timesteps: Array, dim: int, max_period: int) -> tuple[Array, Array]:
    frequencies = float(max_period) ** (-np.arange(dim // 2) / (dim // 2))
    return frequencies, timesteps[:, None] * frequencies


def _timestep_embedding(timesteps: Array, dim: int, max_period: int = 10000) -> Array:
    _, angles = _timestep_angles(timesteps, dim, max_period)
    return np.concatenate([np.cos(angles), np.sin(angles), np.zeros((len(timesteps), dim % 2 * 2))], -1)


def _timestep_embedding_back(g: Array, timesteps: Array, dim: int, max_period: int) -> Array:
    frequencies, angles = _timestep_angles(timesteps, dim, max_period)
    n = dim // 2
    return np.asarray((frequencies * (g[:, n : 2 * n] * np.cos(angles) - g[:, :n] * np.sin(angles))).sum(-1))


# ---------------------------------------------------------------- windows over images


def _im2col(a: Array, b: Array, **p: int) -> Array:
    """Every patch by its definition; a height of 1 stands for one dimension."""
    s0, s1, p0, p1, d0, d1, is_2d = (p[k] for k in ("s0", "s1", "p0", "p1", "d0", "d1", "is_2d"))
    if not is_2d:
        a, b, s1, p1, d1 = a[..., None, :], _with_rank(b, 3)[..., None, :], 1, 0, 1
    kh, kw = a.shape[-2:]
    b = np.pad(_with_rank(b, 4), ((0, 0), (0, 0), (p1, p1), (p0, p0)))
    oh, ow = (b.shape[2] - d1 * (kh - 1) - 1) // s1 + 1, (b.shape[3] - d0 * (kw - 1) - 1) // s0 + 1
    y = np.empty((len(b), oh, ow, b.shape[1] * kh * kw))
    for i, j in np.ndindex(oh, ow):
        patch = b[:, :, i * s1 : i * s1 + d1 * (kh - 1) + 1 : d1, j * s0 : j * s0 + d0 * (kw - 1) + 1 : d0]
        y[:, i, j] = patch.reshape(len(b), -1)
    return y if is_2d else y[:, 0]


def _transposed(forward: Callable[..., Array], g: Array, shape: Shape) -> Array:
    """The cotangent of x in a linear forward(x), element by element."""
    units = np.eye(math.prod(shape)).reshape(-1, *shape)
    return np.array([np.sum(g.reshape(-1) * forward(unit).reshape(-1)) for unit in units]).reshape(shape)


def _conv_transpose_2d(a: Array, b: Array, stride: int = 1) -> Array:
    b = _with_rank(b, 4)
    n, _, h, w = b.shape
    _, n_out, kh, kw = a.shape
    y = np.zeros((n, n_out, (h - 1) * stride + kh, (w - 1) * stride + kw))
    for i, j in np.ndindex(h, w):
        spread = np.einsum("nc,cokl->nokl", b[:, :, i, j], a)
        y[:, :, i * stride : i * stride + kh, j * stride : j * stride + kw] += spread
    return y


def _conv_transpose_1d(a: Array, b: Array, stride: int = 1, padding: int = 0, dilation: int = 1) -> Array:
    return _conv_transpose_2d(a[..., None, :], b[..., None, :], stride)[0, :, 0]


def _conv_transpose(a: Array, b: Array, stride: int, dims: int) -> Array:
    return _conv_transpose_1d(a, b, stride) if dims == 1 else _conv_transpose_2d(a, b, stride)


def _pool_windows(a: Array, k0: int, k1: int, s0: int, s1: int, p0: int, p1: int) -> Array:
    """(..., out_height, out_width, k1, k0), NaN where a window is outside."""
    a = np.pad(_with_rank(a, 4), ((0, 0), (0, 0), (p1, p1), (p0, p0)), constant_values=np.nan)
    return np.lib.stride_tricks.sliding_window_view(a, (k1, k0), axis=(-2, -1))[..., ::s1, ::s0, :, :]  # type: ignore[call-overload,no-any-return]


def _pool_2d(a: Array, kind: int, k0: int, k1: int, s0: int, s1: int, p0: int = 0, p1: int = 0) -> Array:
    windows = _pool_windows(a, k0, k1, s0, s1, p0, p1)
    y = np.asarray(np.nansum(windows, (-2, -1)) / (k0 * k1) if kind else np.nanmax(windows, (-2, -1)))
    return y.reshape(*a.shape[:-2], *y.shape[-2:])


def _pool_2d_back(g: Array, a: Array, kind: int, **p: int) -> Array:
    """A mean hands g out evenly, a maximum to the first place that holds it."""
    windows = _pool_windows(a, **p)
    places = np.full(windows.shape, 1.0 / (p["k0"] * p["k1"]))
    if not kind:
        flat = np.nan_to_num(windows, nan=-np.inf).reshape(*windows.shape[:-2], -1)
        places = (np.arange(flat.shape[-1]) == flat.argmax(-1)[..., None]).reshape(windows.shape).astype(float)
    height, width = a.shape[-2:]
    y = np.zeros((*windows.shape[:2], height + 2 * p["p1"], width + 2 * p["p0"]))
    g = g.reshape(places.shape[:4])
    for i, j in np.ndindex(places.shape[2:4]):
        rows, columns = slice(i * p["s1"], i * p["s1"] + p["k1"]), slice(j * p["s0"], j * p["s0"] + p["k0"])
        y[:, :, rows, columns] += g[:, :, i, j, None, None] * places[:, :, i, j]
    return y[:, :, p["p1"] : p["p1"] + height, p["p0"] : p["p0"] + width].reshape(a.shape)


def _pool_1d(a: Array, kind: int, k0: int, s0: int, p0: int = 0) -> Array:
    return _pool_2d(a, kind, k0, 1, s0, 1, p0, 0)


def _pool_1d_back(g: Array, a: Array, kind: int, k0: int, s0: int, p0: int) -> Array:
    return _pool_2d_back(g, a, kind, k0=k0, k1=1, s0=s0, s1=1, p0=p0, p1=0)


# ---------------------------------------------------------------- attention


def _attention_scores(
    q: Array, k: Array, mask: Array | None, scale: float, n_past: int, window: int = 0, soft_cap: float = 0.0
) -> Array:  # fmt: skip
    """(batch, n_head, ctx, ctx_k) from q and k whose heads are the last axis but one."""
    scores = scale * _mul_mat(k.swapaxes(-2, -3), q.swapaxes(-2, -3))
    scores = (soft_cap * np.tanh(scores / soft_cap) if soft_cap else scores) + (0 if mask is None else mask)
    hidden = _above_diagonal(scores, n_past)
    if window:
        hidden = hidden | ~_above_diagonal(scores, n_past - window)
    return np.where(hidden, -np.inf, scores)


def _attention(
    q: Array, k: Array, v: Array, lse: Array | None = None, mask: Array | None = None, scale: float = 1.0,
    n_past: int = 0, window: int = 0, soft_cap: float = 0.0,
) -> Array:  # fmt: skip
    weights = _soft_max(_attention_scores(q, k, mask, scale, n_past, window, soft_cap))
    return _mul_mat(v.swapaxes(-2, -3).swapaxes(-1, -2), weights).swapaxes(-2, -3)


def _attention_writes(
    q: Array, k: Array, v: Array, lse: Array | None = None, mask: Array | None = None, scale: float = 1.0,
    n_past: int = 0, window: int = 0, soft_cap: float = 0.0,
) -> dict[str, Array]:  # fmt: skip
    if lse is None:
        return {}
    return {"lse": np.log(np.exp(_attention_scores(q, k, mask, scale, n_past, window, soft_cap)).sum(-1))}


def _cached_attention_writes(
    q: Array, k: Array, v: Array, k_cache: Array, v_cache: Array, n_past: Array, scale: float = 1.0,
    soft_cap: float = 0.0,
) -> dict[str, Array]:  # fmt: skip
    """The caches with what there is room for of k and v, a head after the other, at places n_past[0], ..."""
    k_cache, v_cache = k_cache.copy(), v_cache.copy()
    heads = np.moveaxis(_with_rank(k, 4), 2, 1), np.moveaxis(_with_rank(v, 4), 2, 1)
    for i, (keys, values) in enumerate(zip(*(x.reshape(-1, *x.shape[2:]) for x in heads), strict=True)):
        for at, (key, value) in enumerate(zip(keys, values, strict=True), int(n_past[0])):
            if at < v_cache.shape[-2]:
                k_cache[i, at // 64, :, at % 64] = key
                v_cache[i, at] = value
    return {"k_cache": k_cache, "v_cache": v_cache}


def _cached_attention(
    q: Array, k: Array, v: Array, k_cache: Array, v_cache: Array, n_past: Array, scale: float = 1.0,
    soft_cap: float = 0.0,
) -> Array:  # fmt: skip
    caches = _cached_attention_writes(q, k, v, k_cache, v_cache, n_past)
    batch, n, n_head_kv, head_dim = _with_rank(k, 4).shape
    room = min(caches["v_cache"].shape[-2], int(n_past[0]) + n)
    keys = np.moveaxis(caches["k_cache"], -1, 2).reshape(batch, n_head_kv, -1, head_dim)
    values = caches["v_cache"].reshape(batch, n_head_kv, -1, head_dim)
    k, v = (x.swapaxes(1, 2)[:, :room] for x in (keys, values))
    y = _attention(_with_rank(q, 4), k, v, scale=scale, n_past=int(n_past[0]), soft_cap=soft_cap)
    return y.reshape(q.shape)


def _attention_back_writes(
    dq: Array, dk: Array, dv: Array, g: Array, y: Array, q: Array, k: Array, v: Array, lse: Array,
    mask: Array | None, scale: float, n_past: int, window: int, soft_cap: float,
) -> dict[str, Array]:  # fmt: skip
    """By the chain rule through products and softmax, from g, q, k and v alone."""
    weights = _soft_max(_attention_scores(q, k, mask, scale, n_past, window, soft_cap))
    q, k, v, g = (x.swapaxes(-2, -3) for x in (q, k, v, g))
    dscores = _soft_max_back(_mul_mat(v, g), weights, scale)
    if soft_cap:
        dscores = dscores * (1 - np.tanh(scale * _mul_mat(k, q) / soft_cap) ** 2)
    dq = dscores @ _group_repeat(k, q.shape)
    dk, dv = _mul_mat_back(dscores, q, k.shape), _mul_mat_back(weights, g, v.shape)
    return {"dq": dq.swapaxes(-2, -3), "dk": dk.swapaxes(-2, -3), "dv": dv.swapaxes(-2, -3)}


def _flash_weights(
    q: Array, k: Array, mask: Array | None, scale: float, max_bias: float, logit_softcap: float
) -> tuple[Array, Array]:
    """The softmax, and the derivative of the scores by the products of queries and keys."""
    scores, slope = scale * _mul_mat(k, q), np.asarray(scale)
    if logit_softcap:
        t = np.tanh(scores / logit_softcap)
        scores, slope = logit_softcap * t, scale * (1 - t * t)
    return _soft_max(scores, mask, 1.0, max_bias), slope


def _flash_attn_ext(
    q: Array, k: Array, v: Array, mask: Array | None = None, scale: float = 1.0, max_bias: float = 0.0,
    logit_softcap: float = 0.0, prec: int = 0,
) -> Array:  # fmt: skip
    weights, _ = _flash_weights(q, k, mask, scale, max_bias, logit_softcap)
    return _mul_mat(v.swapaxes(-1, -2), weights).swapaxes(-2, -3)


def _flash_back_writes(
    dq: Array, dk: Array, dv: Array, g: Array, q: Array, k: Array, v: Array, mask: Array | None, scale: float,
    max_bias: float, logit_softcap: float,
) -> dict[str, Array]:  # fmt: skip
    weights, slope = _flash_weights(q, k, mask, scale, max_bias, logit_softcap)
    g = g.swapaxes(-2, -3)
    dscores = _soft_max_back(_mul_mat(v, g), weights, 1.0) * slope
    dk, dv = _mul_mat_back(dscores, q, k.shape), _mul_mat_back(weights, g, v.shape)
    return {"dq": dscores @ _group_repeat(k, q.shape), "dk": dk, "dv": dv}


def _yarn_scale(
    n_dims: int, n_ctx_orig: int, freq_base: float, freq_scale: float, ext_factor: float, beta_fast: float,
    beta_slow: float,
) -> Any:  # fmt: skip
    """Factor of each frequency (Peng et al. 2023, section 3.2): interpolation below beta_slow turns."""
    if not ext_factor:
        return freq_scale

    def pair(turns: float) -> float:
        return n_dims * math.log(n_ctx_orig / (turns * 2 * math.pi)) / (2 * math.log(freq_base))

    low, high = max(0, math.floor(pair(beta_fast))), min(n_dims - 1, math.ceil(pair(beta_slow)))
    fast = (1 - np.clip((np.arange(n_dims // 2) - low) / max(0.001, high - low), 0, 1)) * ext_factor
    return freq_scale * (1 - fast) + fast


def _rotation(
    positions: Array, freq_factors: Array | None, n_dims: int, freq_base: float, freq_scale: Any
) -> tuple[Array, Array]:
    """cos and sin of each position's angles, shaped to multiply (..., ctx, n_head, n_dims / 2)."""
    frequency = freq_base ** (-2.0 * np.arange(n_dims // 2) / n_dims) * freq_scale
    if freq_factors is not None:
        frequency = frequency / freq_factors.reshape(-1)[: n_dims // 2]
    angle = positions.reshape(-1, 1, 1) * frequency
    return np.cos(angle), np.sin(angle)


def _rotate(a: Array, cos: Array, sin: Array, n_dims: int, mode: int) -> Array:
    y = a.astype(np.float64)
    first, second = (slice(0, n_dims, 2), slice(1, n_dims, 2))
    if mode == 2:
        first, second = slice(0, n_dims // 2), slice(n_dims // 2, n_dims)
    y[..., first] = a[..., first] * cos - a[..., second] * sin
    y[..., second] = a[..., first] * sin + a[..., second] * cos
    return y


def _rope(direction: float) -> Callable[..., Array]:
    def rope(
        a: Array, positions: Array, freq_factors: Array | None = None, n_dims: int = 0, mode: int = 0,
        n_ctx_orig: int = 0, freq_base: float = 10000.0, freq_scale: float = 1.0, ext_factor: float = 0.0,
        attn_factor: float = 1.0, beta_fast: float = 0.0, beta_slow: float = 0.0,
    ) -> Array:  # fmt: skip
        scale = _yarn_scale(n_dims, n_ctx_orig, freq_base, freq_scale, ext_factor, beta_fast, beta_slow)
        cos, sin = _rotation(positions, freq_factors, n_dims, freq_base, scale)
        attn_factor *= 1 + 0.1 * math.log(1 / freq_scale) if ext_factor else 1
        return _rotate(a, attn_factor * cos, direction * attn_factor * sin, n_dims, mode)

    return rope


# ---------------------------------------------------------------- loss


def _log_soft_max(a: Array) -> Array:
    z = a - a.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def _cross_entropy(logits: Array, targets: Array, weights: Array, scale: float = 1.0) -> Array:
    logp = _log_soft_max(logits).reshape(-1, logits.shape[-1])
    at_targets = logp[np.arange(len(logp)), targets.reshape(-1)]
    return scale * np.sum(weights.reshape(-1) * at_targets, keepdims=True)


def _cross_entropy_back(g: Array, logits: Array, targets: Array, weights: Array) -> Array:
    p = _soft_max(logits).reshape(-1, logits.shape[-1])
    one_hot = np.eye(p.shape[-1])[targets.reshape(-1)]
    return (g.reshape(()) * weights.reshape(-1, 1) * (one_hot - p)).reshape(logits.shape)


def _soft_cross_entropy(logits: Array, labels: Array) -> Array:
    n_rows = math.prod(logits.shape[:-1])
    return np.sum(-labels * _log_soft_max(logits) / n_rows, keepdims=True).reshape(1)


def _soft_cross_entropy_back(g: Array, logits: Array, labels: Array, sums: Any = None) -> Array:
    sums = labels.sum(-1, keepdims=True) if sums is None else sums
    return g.reshape(()) / math.prod(logits.shape[:-1]) * (sums * _soft_max(logits) - labels)


def _linear_cross_entropy(
    w: Array, x: Array, targets: Array, weights: Array, dw: Array | None = None, dx: Array | None = None,
    scale: float = 1.0,
) -> Array:  # fmt: skip
    return _cross_entropy(_mul_mat(w, x), targets, weights, scale)


def _linear_cross_entropy_writes(
    w: Array, x: Array, targets: Array, weights: Array, dw: Array | None = None, dx: Array | None = None,
    scale: float = 1.0,
) -> dict[str, Array]:  # fmt: skip
    if dw is None:
        return {}
    dlogits = _cross_entropy_back(np.full(1, scale), _mul_mat(w, x), targets, weights).reshape(-1, w.shape[-2])
    rows = x.reshape(-1, x.shape[-1])
    return {"dw": (dlogits.T @ rows).reshape(w.shape), "dx": (dlogits @ w).reshape(x.shape)}


# ---------------------------------------------------------------- optimiser


def _accumulate(total: Array, g: Array, keep: Array) -> Array:
    return keep.reshape(()) * total + g


def _sum_sqr(a: Array, total: Array | None = None) -> Array:
    return np.sum(a**2, keepdims=True).reshape(1) + (0.0 if total is None else total)


def _norm_of(sum_sqr: Array) -> float:
    return math.sqrt(sum_sqr.reshape(())) if np.isfinite(sum_sqr).all() else math.inf


def _clipped(g: Array, hyper: Array, sum_sqr: Array) -> Array:
    """The gradient that an update sees."""
    norm, (clip, clip_value) = _norm_of(sum_sqr), hyper.reshape(-1)[2:4]
    g = g * (clip / (norm + 1e-6)) if clip > 0 and norm > clip else g
    return np.clip(g, -clip_value, clip_value) if clip_value > 0 else g


def _stepped(p: Array, u: Array, hyper: Array, rate: float, decay: float, cautious: int) -> Array:
    lr, weight_decay = hyper.reshape(-1)[:2]
    decays = (u * p >= 0) | (not cautious)
    return p - lr * weight_decay * decay * p * decays - lr * rate * u


def _skips(update: Callable[..., dict[str, Array]], *states: str) -> Callable[..., dict[str, Array]]:
    """An update that leaves everything as it is where the gradient is not finite."""

    def writes(*operands: Array, rate: float = 1.0, decay: float = 1.0, cautious: int = 0) -> dict[str, Array]:
        if not math.isfinite(_norm_of(operands[-1])):
            return {"p": operands[0]} | dict(zip(states, operands[2:], strict=False))
        return update(*operands, rate, decay, cautious)

    return writes


def _adamw_update(
    p: Array, g: Array, m: Array, v: Array, hyper: Array, sum_sqr: Array, rate: float, decay: float, cautious: int
) -> dict[str, Array]:
    beta1, beta2, eps, correction1, correction2 = hyper.reshape(-1)[4:9]
    g = _clipped(g, hyper, sum_sqr)
    m = beta1 * m + (1.0 - beta1) * g
    v = beta2 * v + (1.0 - beta2) * g**2
    u = (m / correction1) / (np.sqrt(v / correction2) + eps)
    return {"p": _stepped(p, u, hyper, rate, decay, cautious), "m": m, "v": v}


def _sgd_update(
    p: Array, g: Array, hyper: Array, sum_sqr: Array, rate: float, decay: float, cautious: int
) -> dict[str, Array]:
    lr, weight_decay = hyper.reshape(-1)[:2]
    return {"p": p - lr * rate * (_clipped(g, hyper, sum_sqr) + weight_decay * decay * p)}


def _sgd_momentum_update(
    p: Array, g: Array, m: Array, hyper: Array, sum_sqr: Array, rate: float, decay: float, cautious: int
) -> dict[str, Array]:
    lr, weight_decay, _, _, momentum, nesterov = hyper.reshape(-1)[:6]
    g = _clipped(g, hyper, sum_sqr) + weight_decay * decay * p
    m = momentum * m + g
    return {"p": p - lr * rate * (g + momentum * m if nesterov else m), "m": m}


def _lion_update(
    p: Array, g: Array, m: Array, hyper: Array, sum_sqr: Array, rate: float, decay: float, cautious: int
) -> dict[str, Array]:
    beta1, beta2 = hyper.reshape(-1)[4:6]
    g = _clipped(g, hyper, sum_sqr)
    u = np.sign(beta1 * m + (1 - beta1) * g)
    return {"p": _stepped(p, u, hyper, rate, decay, cautious), "m": beta2 * m + (1 - beta2) * g}


def _momentum_writes(g: Array, m: Array, hyper: Array, sum_sqr: Array) -> dict[str, Array]:
    beta, finite = hyper.reshape(-1)[4], math.isfinite(_norm_of(sum_sqr))
    return {"m": beta * m + (1 - beta) * _clipped(g, hyper, sum_sqr) if finite else m}


def _momentum(g: Array, m: Array, hyper: Array, sum_sqr: Array) -> Array:
    beta, nesterov = hyper.reshape(-1)[4:6]
    m = _momentum_writes(g, m, hyper, sum_sqr)["m"]
    return beta * m + (1 - beta) * _clipped(g, hyper, sum_sqr) if nesterov else m


def _muon_update(
    p: Array, u: Array, hyper: Array, sum_sqr: Array, rate: float, decay: float, cautious: int
) -> dict[str, Array]:
    return {"p": _stepped(p, u, hyper, rate, decay, cautious)}


def _normuon_update(
    p: Array, u: Array, v: Array, hyper: Array, sum_sqr: Array, rate: float, decay: float, cautious: int
) -> dict[str, Array]:
    beta2, eps = hyper.reshape(-1)[6:8]
    v = beta2 * v + (1 - beta2) * np.mean(u**2, -1).reshape(v.shape)
    u = u / (np.sqrt(v).reshape(*u.shape[:-1], 1) + eps)
    norm = np.sqrt(np.sum(u**2))
    return {"p": _stepped(p, u / norm if norm else 0 * u, hyper, rate, decay, cautious), "v": v}


def _rms(a: Array) -> float:
    return float(np.sqrt(np.mean(a**2)))


def _adafactor_stepped(p: Array, g: Array, v: Array, hyper: Array, rate: float, decay: float, cautious: int) -> Array:
    lr, floor, least_scale, threshold, most_rate = hyper.reshape(-1)[[0, 6, 7, 8, 9]]
    u = g / np.sqrt(np.maximum(v, floor**2))
    scale = max(least_scale, _rms(p)) / max(1.0, _rms(u) / threshold)
    slower = most_rate / lr if 0 < most_rate < lr else 1.0
    return _stepped(p, scale * slower * u, hyper, rate, decay, cautious)


def _adafactor_update(
    p: Array, g: Array, r: Array, c: Array, hyper: Array, sum_sqr: Array, rate: float, decay: float, cautious: int
) -> dict[str, Array]:
    beta2, added, floor = hyper.reshape(-1)[4:7]
    g, shape = np.atleast_2d(_clipped(g, hyper, sum_sqr)), p.shape
    rows, columns = (np.mean(g**2, axis, keepdims=True) + added for axis in (-1, -2))
    of_rows = beta2 * r.reshape(rows.shape) + (1 - beta2) * rows
    of_columns = beta2 * c.reshape(columns.shape) + (1 - beta2) * columns
    v = of_rows * of_columns / np.maximum(np.mean(of_rows, -2, keepdims=True), floor)
    stepped = _adafactor_stepped(p, g.reshape(shape), v.reshape(shape), hyper, rate, decay, cautious)
    return {"p": stepped, "r": of_rows.reshape(r.shape), "c": of_columns.reshape(c.shape)}


def _adafactor_whole_update(
    p: Array, g: Array, v: Array, hyper: Array, sum_sqr: Array, rate: float, decay: float, cautious: int
) -> dict[str, Array]:
    beta2, added = hyper.reshape(-1)[4:6]
    g = _clipped(g, hyper, sum_sqr)
    v = beta2 * v + (1 - beta2) * (g**2 + added)
    return {"p": _adafactor_stepped(p, g, v, hyper, rate, decay, cautious), "v": v}


def _schedule_free_update(
    p: Array, g: Array, v: Array, z: Array, average: Array, sums: Array, hyper: Array, sum_sqr: Array, rate: float,
    decay: float, cautious: int,
) -> dict[str, Array]:  # fmt: skip
    lr, weight_decay, _, _, beta1, beta2, eps, correction2, first = hyper.reshape(-1)[:9]
    g = _clipped(g, hyper, sum_sqr)
    v = beta2 * v + (1 - beta2) * g**2
    z, x = (p, p) if first else (z, average)
    z = z - lr * rate * (g / (np.sqrt(v / correction2) + eps) + weight_decay * decay * p)
    largest = lr if first else max(lr, sums.reshape(-1)[0])
    total = largest**2 + (0.0 if first else sums.reshape(-1)[1])
    x = x + largest**2 / total * (z - x) if total else x
    sums = np.array([largest, total]).reshape(sums.shape)
    return {"p": (1 - beta1) * z + beta1 * x, "v": v, "z": z, "average": x, "sums": sums}


def _ema(average: Array, p: Array, hyper: Array, sum_sqr: Array) -> Array:
    decay, first = hyper.reshape(-1)[4:6]
    if not math.isfinite(_norm_of(sum_sqr)):
        return average
    return p if first else decay * average + (1 - decay) * p


UPDATES: dict[str, Callable[..., dict[str, Array]]] = {
    "adamw": _skips(_adamw_update, "m", "v"),
    "sgd": _skips(_sgd_update),
    "sgd_momentum": _skips(_sgd_momentum_update, "m"),
    "lion": _skips(_lion_update, "m"),
    "adafactor": _skips(_adafactor_update, "r", "c"),
    "adafactor_whole": _skips(_adafactor_whole_update, "v"),
    "schedule_free": _skips(_schedule_free_update, "v", "z", "average", "sums"),
    "muon": _skips(_muon_update),
    "normuon": _skips(_normuon_update, "v"),
}


def _first_written(update: Callable[..., dict[str, Array]], *operands: Array, **params: Any) -> Array:
    return update(*operands, **params)["p"]


def _opt_step_adamw_writes(
    p: Array, g: Array, m: Array, v: Array, iteration: int, alpha: float, beta1: float, beta2: float, eps: float,
    weight_decay: float,
) -> dict[str, Array]:  # fmt: skip
    hyper = np.array([alpha, weight_decay, 0, 0, beta1, beta2, eps, 1 - beta1**iteration, 1 - beta2**iteration])
    return UPDATES["adamw"](p, g, m, v, hyper, np.zeros(1))


# ---------------------------------------------------------------- the table

REFERENCE: dict[str, Callable[..., Array]] = {
    "add": lambda a, b: a + _tile(b, a.shape),
    "sub": lambda a, b: a - _tile(b, a.shape),
    "mul": lambda a, b: a * _tile(b, a.shape),
    "div": lambda a, b: a / _tile(b, a.shape),
    "add1": lambda a, b: a + b.reshape(()),
    "scale": lambda a, s: a * s,
    "sqr": lambda a: a**2,
    "sqrt": np.sqrt,
    "log": np.log,
    "sin": np.sin,
    "cos": np.cos,
    "clamp": lambda a, min, max: np.clip(a, min, max),
    "within": lambda a, min, max: np.where((a >= min) & (a <= max), 1.0, 0.0),
    "abs": np.abs,
    "sgn": lambda a: np.where(a > 0, 1.0, np.where(a < 0, -1.0, 0.0)),
    "neg": lambda a: -a,
    "exp": np.exp,
    "step": lambda a: np.where(a > 0, 1.0, 0.0),
    "relu": lambda a: np.maximum(a, 0.0),
    "leaky_relu": lambda a, slope=0.01: np.where(a > 0, a, slope * a),
    "leaky_step": lambda a, slope: np.where(a > 0, 1.0, slope),
    "elu": lambda a: np.where(a > 0, a, np.expm1(np.minimum(a, 0))),
    "elu_back": lambda g, a: g * np.exp(np.minimum(a, 0)),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "silu_back": lambda a, g: _silu_back(g, a),
    "gelu": lambda a: a * _sigmoid(_gelu_argument(a)),
    "gelu_back": _gelu_back,
    "gelu_quick": lambda a: a * _sigmoid(1.702 * a),
    "gelu_erf": lambda a: a * _normal_cdf(a),
    "gelu_erf_back": lambda g, a: g * _gelu_erf_slope(a),
    "gelu_erf_slope": _gelu_erf_slope,
    "hardsigmoid": _hardsigmoid,
    "hardsigmoid_back": lambda g, a: g * np.where(np.abs(a) < 3, 1 / 6, 0.0),
    "hardswish": lambda a: a * _hardsigmoid(a),
    "hardswish_back": lambda g, a: g * (_hardsigmoid(a) + a * np.where(np.abs(a) < 3, 1 / 6, 0.0)),
    "swiglu": lambda a, b: _silu(a) * b,
    "swiglu_back": lambda g, a, b, db: _silu_back(g * b, a),
    "sum": lambda a: np.sum(a).reshape(1),
    "sum_rows": lambda a: a.sum(-1, keepdims=True),
    "mean": lambda a: a.mean(-1, keepdims=True),
    "count_equal": lambda a, b: np.array([np.sum(a == b)]),
    "repeat": lambda a, shape: _tile(a, shape),
    "repeat_back": lambda a, shape: _sum_tiles(a, shape),
    "expand": lambda a, shape: np.broadcast_to(a, shape),
    "sum_products": lambda a, b, shape: _sum_tiles(a * b, shape),
    "norm": _norm,
    "norm_back": _norm_back,
    "norm_gain": lambda a, gain, bias, eps: (
        _norm(a, eps) * gain.reshape(-1) + (0 if bias is None else bias.reshape(-1))
    ),
    "norm_gain_back": lambda g, a, gain, dgain, dbias, eps: _norm_back(g * gain.reshape(-1), a, eps),
    "rms_norm": _rms_norm,
    "rms_norm_back": lambda a, g, eps: _rms_norm_back(g, a, eps),
    "rms_norm_gain": lambda a, gain, eps: _rms_norm(a, eps) * gain.reshape(-1),
    "rms_norm_gain_back": lambda g, a, gain, dgain, eps: _rms_norm_back(g * gain.reshape(-1), a, eps),
    "group_norm": _group_norm,
    "group_norm_back": lambda g, a, n_groups, eps: _group_norm(a, n_groups, eps, g),
    "mul_mat": _mul_mat,
    "mul_mat_back": _mul_mat_back,
    "out_prod": _out_prod,
    "mul_mat_id": _mul_mat_id,
    "mul_mat_id_back": _mul_mat_id_back,
    "mul_mat_id_rows_back": _mul_mat_id_rows_back,
    "dup": lambda a: a,
    "cont": lambda a, shape=None: a.reshape(a.shape if shape is None else shape),
    "reshape": lambda a, shape: a.reshape(shape),
    "stop_gradient": lambda a, shape: a.reshape(shape),
    "view": _view,
    "view_back": _view_back,
    "permute": _permute,
    "permute_back": _permute_back,
    "transpose": lambda a: _with_rank(a, 2).swapaxes(-1, -2),
    "concat": lambda a, b, dim=0: np.concatenate([a, b], -1 - dim),
    "part": _part,
    "pad": _pad,
    "upscale": lambda a, shape: _with_rank(a, len(shape))[_copied(_with_rank(a, len(shape)).shape, shape)],
    "upscale_back": _upscale_back,
    "diag": _diag,
    "diagonal": lambda a: np.diagonal(a, axis1=-2, axis2=-1)[..., None, :],
    "set": _set("set"),
    "acc": _set("acc"),
    "clear": _set("clear"),
    "window": lambda a, nb1, nb2, nb3, offset, shape: a.reshape(-1)[_set_window(shape, (nb1, nb2, nb3), offset)],
    "get_rows": _get_rows,
    "get_rows_back": _get_rows_back,
    "add_rows": lambda g, ids, total, shape: total + _get_rows_back(g, ids, shape),
    "im2col": _im2col,
    "im2col_back": lambda a, g, shape, **p: _transposed(lambda b: _im2col(a, b, **p), g, shape),
    "conv_transpose_1d": _conv_transpose_1d,
    "conv_transpose_2d": _conv_transpose_2d,
    "conv_transpose_kernel_back": lambda g, b, stride, dims, shape: _transposed(
        lambda a: _conv_transpose(a, b, stride, dims), g, shape
    ),
    "conv_transpose_data_back": lambda g, a, stride, dims, shape: _transposed(
        lambda b: _conv_transpose(a, b, stride, dims), g, shape
    ),
    "pool_1d": _pool_1d,
    "pool_1d_back": _pool_1d_back,
    "pool_2d": _pool_2d,
    "pool_2d_back": _pool_2d_back,
    "argsort": _argsort,
    "argmax": _argmax,
    "arange": lambda start, stop, step=1.0: start + step * np.arange(math.ceil((stop - start) / step)),
    "timestep_embedding": _timestep_embedding,
    "timestep_embedding_back": _timestep_embedding_back,
    "diag_mask_inf": _diag_mask(-np.inf),
    "diag_mask_zero": _diag_mask(0.0),
    "soft_max": _soft_max,
    "soft_max_back": lambda g, y: _soft_max_back(g, y, 1.0),
    "soft_max_scaled_back": _soft_max_back,
    "attention": _attention,
    "cached_attention": _cached_attention,
    "attention_back": lambda *operands, **params: _attention_back_writes(*operands, **params)["dq"],
    "flash_attn_ext": _flash_attn_ext,
    "flash_attn_ext_back": lambda *operands, **params: _flash_back_writes(*operands, **params)["dq"],
    "rope": _rope(1.0),
    "rope_back": _rope(-1.0),
    "cross_entropy": _cross_entropy,
    "cross_entropy_back": _cross_entropy_back,
    "linear_cross_entropy": _linear_cross_entropy,
    "soft_cross_entropy": _soft_cross_entropy,
    "soft_cross_entropy_back": _soft_cross_entropy_back,
    "soft_cross_entropy_grad": lambda logits, labels, g: _soft_cross_entropy_back(g, logits, labels, 1.0),
    "empty": lambda shape: np.zeros(shape),  # only the shape is defined
    "written": lambda a, by: a,
    "cpy": lambda a, b: a.reshape(b.shape),
    "cast": lambda a, type: a.astype({F32: np.float32, F16: np.float16}[type]).astype(np.float64),
    "updated": lambda a, by: a,
    "view_as": lambda a, like: a.reshape(-1)[: like.size].reshape(like.shape),
    "cleared": lambda g, by: np.append(np.zeros(by.size), g.reshape(-1)[by.size :]).reshape(g.shape),
    "dropout": _dropout,
    "accumulate": _accumulate,
    "sum_sqr": _sum_sqr,
    "ema": _ema,
    "momentum": _momentum,
    "unit": lambda a, sum_sqr, eps: a / (np.sqrt(sum_sqr.reshape(())) + eps),
    "newton_schulz": lambda s, s2, a, b, c: a * np.broadcast_to(np.eye(s.shape[-1]), s.shape) + b * s + c * s2,
    **{op: partial(_first_written, update) for op, update in UPDATES.items()},
    "opt_step_adamw": lambda *operands, **params: _opt_step_adamw_writes(*operands, **params)["p"],
}

WRITES: dict[str, Callable[..., dict[str, Array]]] = {
    "accumulate": lambda total, g, keep: {"total": _accumulate(total, g, keep)},
    **UPDATES,
    "ema": lambda *operands: {"average": _ema(*operands)},
    "momentum": _momentum_writes,
    "attention": _attention_writes,
    "cpy": lambda a, b: {"b": a.reshape(b.shape)},
    "cached_attention": _cached_attention_writes,
    "attention_back": _attention_back_writes,
    "flash_attn_ext_back": _flash_back_writes,
    "swiglu_back": lambda g, a, b, db: {"db": g * _silu(a)},
    "norm_gain_back": lambda g, a, gain, dgain, dbias, eps: (
        {"dgain": _rows_sum(g * _norm(a, eps)).reshape(gain.shape)}
        | ({} if dbias is None else {"dbias": _rows_sum(g).reshape(gain.shape)})
    ),
    "rms_norm_gain_back": lambda g, a, gain, dgain, eps: {
        "dgain": _rows_sum(g * _rms_norm(a, eps)).reshape(gain.shape)
    },
    "linear_cross_entropy": _linear_cross_entropy_writes,
    "opt_step_adamw": _opt_step_adamw_writes,
}

# ---------------------------------------------------------------- samples

SLICE_BEFORE, SLICE_AFTER = 3, 2  # elements around each row of a sliced operand


@dataclass(frozen=True)
class Operand:
    """How to make one operand, and how it lies in memory.

    kind: "f32" uniform in low..high; "ids" int32 in 0..limit-1; "distinct" the same
    distances apart; "values" those given, in turn; "causal" a mask, -inf
    where column > row. layout: "dense"; "permuted", the axes -2 and -3 exchanged in memory; "transposed", the last
    two; "sliced", a part of longer rows.
    """

    shape: Shape
    kind: str = "f32"
    low: float = -2.0
    high: float = 2.0
    limit: int = 0
    values: tuple[float, ...] = ()
    dtype: str = "f32"  # of "values"
    layout: str = "dense"

    def make(self, rng: np.random.Generator) -> Array:
        """The operand's values, float32 or int32."""
        if self.kind == "ids":
            return rng.integers(0, self.limit, self.shape, np.int32)
        if self.kind == "distinct":
            return rng.permutation(np.linspace(self.low, self.high, math.prod(self.shape), dtype=np.float32)).reshape(
                self.shape
            )
        if self.kind == "count":
            return np.full(self.shape, self.limit, np.int32)
        if self.kind == "values":
            dtype = np.int32 if self.dtype == "i32" else np.float32
            return np.resize(np.array(self.values, dtype), self.shape)
        if self.kind == "causal":
            return np.where(_above_diagonal(np.zeros(self.shape), 0), -np.inf, 0.0).astype(np.float32)
        return rng.uniform(self.low, self.high, self.shape).astype(np.float32)

    def store(self, values: Array) -> Array:
        """The contiguous memory that holds `values` in this layout. A slice is surrounded by NaN, or huge ids."""
        if self.layout == "permuted":
            return np.ascontiguousarray(values.swapaxes(-2, -3))
        if self.layout == "transposed":
            return np.ascontiguousarray(values.swapaxes(-1, -2))
        if self.layout == "sliced":
            row = SLICE_BEFORE + values.shape[-1] + SLICE_AFTER
            outside = np.iinfo(np.int32).max if self.kind == "ids" else np.nan
            memory = np.full((*values.shape[:-1], row), outside, values.dtype)
            memory[..., SLICE_BEFORE:-SLICE_AFTER] = values
            return memory
        return values


@dataclass(frozen=True, eq=False)
class Sample:
    """One call of an op. `shape` is that of a sized op's result, `strides` (bytes, numpy order) a view's."""

    operands: tuple[Operand | None, ...]
    params: dict[str, Any] = field(default_factory=dict)
    shape: Shape | None = None
    strides: Shape | None = None
    op: str = ""
    index: int = 0

    def arrays(self) -> list[Array | None]:
        """The operands' values, the same at each call."""
        rng = np.random.default_rng(zlib.crc32(f"{self.op}/{self.index}".encode()))
        return [None if operand is None else operand.make(rng) for operand in self.operands]

    def keywords(self) -> dict[str, Any]:
        """Everything that REFERENCE takes beside the operands."""
        sizes = {"shape": self.shape, "strides": self.strides}
        return {**self.params, **{name: value for name, value in sizes.items() if value is not None}}

    def __str__(self) -> str:
        """A readable test id, unique among the op's samples."""
        operands = ["none" if o is None else "x".join(map(str, o.shape)) + o.layout[:1] for o in self.operands]
        return "-".join([f"{self.op}{self.index}", *operands])


def _f32(shape: Shape, low: float = -2.0, high: float = 2.0, layout: str = "dense") -> Operand:
    return Operand(shape, "f32", low, high, layout=layout)


def _ids(shape: Shape, limit: int) -> Operand:
    return Operand(shape, "ids", limit=limit)


def _values(shape: Shape, *values: float) -> Operand:
    return Operand(shape, "values", values=values)


LINES: list[Shape] = [(1,), (2,), (3,), (7,), (31,), (32,), (33,), (64,), (65,), (127,)]
BLOCKS: list[Shape] = [(2, 3), (3, 33), (7, 65), (33, 127), (2, 3, 31), (1, 1, 1, 1), (3, 1, 2, 64), (2, 3, 2, 7)]
ROWS_APART: list[tuple[Shape, str]] = [
    ((3, 7, 33), "permuted"), ((2, 3, 7, 32), "permuted"), ((3, 31), "sliced"), ((2, 2, 7, 64), "sliced"),
    ((1, 127), "sliced"), ((3, 2, 1), "permuted"),
]  # fmt: skip
ELEMENTS_APART: list[tuple[Shape, str]] = [((7, 31), "transposed"), ((3, 33, 65), "transposed"), ((2, 1), "transposed")]
DENSE: list[tuple[Shape, str]] = [(shape, "dense") for shape in (*LINES, *BLOCKS)]

TINY, HUGE = 1e-40, 1e30
SPECIALS = (0.0, -0.0, TINY, -TINY, HUGE, -HUGE, 1e-30, 88.7, -88.7, 104.0, -104.0, 20.0, -20.0, 1.0, -1.0)
INFINITE = (math.inf, -math.inf, math.nan)


LIMITS: list[dict[str, Any]] = [
    {"min": -1.0, "max": 0.5}, {"min": 0.0, "max": math.inf}, {"min": -math.inf, "max": 1.0}, {"min": 0.2, "max": 0.2},
]  # fmt: skip


def _unary(low: float = -2.0, high: float = 2.0, specials: tuple[float, ...] = (), **params: float) -> Iterator[Sample]:
    for shape, layout in (*DENSE, *ROWS_APART, *ELEMENTS_APART):
        yield Sample((_f32(shape, low, high, layout),), params)
    if specials:
        yield Sample((_values((3, 31), *specials),), params)


def _activation(specials: tuple[float, ...] = SPECIALS) -> Iterator[Sample]:
    yield from _unary(specials=specials)
    yield Sample((_f32((7, 65), -15.0, 15.0),))
    yield Sample((_f32((7, 65), -100.0, 100.0),))


def _scale() -> Iterator[Sample]:
    for k, sample in enumerate(_unary()):
        yield Sample(sample.operands, {"s": (0.125, -1.0, 0.0, 3.7)[k % 4]})


def _broadcast(low: float = -2.0, high: float = 2.0) -> Iterator[Sample]:
    """All 16 masks of axes along which b has size 1, tiles, ranks, layouts."""
    shape = (2, 3, 7, 33)
    for mask in range(16):
        small = tuple(1 if mask >> axis & 1 else n for axis, n in enumerate(shape))
        yield Sample((_f32(shape), _f32(small, low, high)))
    pairs: list[tuple[Shape, Shape]] = [
        ((1,), (1,)), ((127,), (1,)), ((65,), (65,)), ((3, 64), (64,)), ((7, 31), (7, 31)), ((33, 2), (33, 1)),
        ((2, 6, 14, 64), (1, 3, 7, 32)), ((6, 66), (3, 2)), ((2, 3, 32), (3, 32)), ((127, 3), (1, 3)),
        ((3, 130), (65,)),
    ]  # fmt: skip
    for large, small in pairs:
        yield Sample((_f32(large), _f32(small, low, high)))
    layouts = [("transposed", "dense"), ("dense", "transposed"), ("permuted", "sliced"), ("sliced", "permuted"),
               ("transposed", "transposed"), ("dense", "permuted"), ("sliced", "dense")]  # fmt: skip
    for one, other in layouts:
        yield Sample((_f32((3, 7, 33), layout=one), _f32((3, 7, 33), low, high, other)))
        yield Sample((_f32((3, 7, 33), layout=one), _f32((3, 1, 33), low, high, other)))


def _few(samples: Iterator[Sample], **params: float) -> Iterator[Sample]:
    """Half of the samples, one layout each at least, with these params."""
    for k, sample in enumerate(samples):
        if k % 2 == 0 or k >= len(DENSE):
            yield replace(sample, params=sample.params | params)


def _hard_activation(specials: tuple[float, ...]) -> Iterator[Sample]:
    """On each of three straight pieces, but no corner in reach of a difference quotient."""
    yield from _few(_unary(-2.9, 2.9, specials))
    yield Sample((_f32((7, 65), -6.0, -3.1),))
    yield Sample((_f32((7, 65), 3.1, 6.0),))


def _alike(n: int, low: float = -2.0, high: float = 2.0, apart: bool = True, **params: float) -> Iterator[Sample]:
    """`n` operands of one shape; where `apart`, elements of a row need not be neighbours."""
    for shape, _ in DENSE:
        yield Sample(tuple(_f32(shape, low, high) for _ in range(n)), params)
    for shape, layout in (*ROWS_APART, *(ELEMENTS_APART if apart else ())):
        yield Sample((_f32(shape, low, high, layout), *[_f32(shape, low, high)] * (n - 1)), params)
        yield Sample((*[_f32(shape, low, high)] * (n - 1), _f32(shape, low, high, layout)), params)


def _activation_back() -> Iterator[Sample]:
    yield from _alike(2)
    yield Sample((_f32((7, 65)), _f32((7, 65), -15.0, 15.0)))
    yield Sample((_f32((7, 65)), _f32((7, 65), -100.0, 100.0)))


def _swiglu_backs() -> Iterator[Sample]:
    for shape, _ in DENSE:
        yield Sample((_f32(shape),) * 4)
    yield Sample((_f32((7, 65)), _f32((7, 65), -100.0, 100.0), _f32((7, 65)), _f32((7, 65))))


def _sums() -> Iterator[Sample]:
    for shape, layout in DENSE:
        yield Sample((_f32(shape, layout=layout),))
    yield Sample((_f32((3, 127, 127), 0.0, 1.0),))
    yield Sample((_values((64,), HUGE, -HUGE, 1.0),))


def _row_sums() -> Iterator[Sample]:
    for shape, layout in (*DENSE, *ROWS_APART):
        yield Sample((_f32(shape, layout=layout),))
    yield Sample((_f32((3, 1027), 0.0, 1.0),))


REPEATS: list[tuple[Shape, Shape]] = [
    ((1,), (127,)), ((3,), (33,)), ((1, 33), (7, 33)), ((7, 1), (7, 65)), ((2, 3), (4, 9)),
    ((1, 1, 1, 1), (2, 3, 7, 31)),
    ((32,), (3, 64)), ((1, 3, 1, 32), (2, 3, 7, 32)), ((2, 1, 7, 1), (2, 3, 7, 31)), ((2, 3, 2, 3), (4, 3, 6, 3)),
    ((31,), (31,)), ((2, 3, 7), (2, 3, 7)), ((1, 2), (65, 2)), ((64,), (2, 2, 3, 64)), ((3, 1, 2), (3, 127, 2)),
]  # fmt: skip


def _repeats() -> Iterator[Sample]:
    for small, large in REPEATS:
        yield Sample((_f32(small),), shape=large)
    yield Sample((_f32((3, 2, 7), layout="permuted"),), shape=(3, 4, 7))
    yield Sample((_f32((2, 3), layout="transposed"),), shape=(6, 3))
    yield Sample((_f32((3, 31), layout="sliced"),), shape=(3, 62))


def _repeat_backs() -> Iterator[Sample]:
    for small, large in REPEATS:
        yield Sample((_f32(large),), shape=small)


def _sums_of_products() -> Iterator[Sample]:
    for small, large in (*REPEATS, ((3, 1), (3, 1500)), ((1,), (40000,))):
        yield Sample((_f32(large), _f32(large)), shape=small)


def _expands() -> Iterator[Sample]:
    for small, large in REPEATS:
        if all(n in (1, m) for n, m in zip(small, large[len(large) - len(small) :], strict=True)):
            yield Sample((_f32(small),), shape=large)
    yield Sample((_f32((3, 1, 7), layout="permuted"),), shape=(3, 4, 7))


EPS = (1e-5, 1e-6, 1e-3)


def _norms() -> Iterator[Sample]:
    for k, (shape, layout) in enumerate((*DENSE, *ROWS_APART)):
        yield Sample((_f32(shape, layout=layout),), {"eps": EPS[k % 3]})
    yield Sample((_f32((7, 64), 9.0, 11.0),), {"eps": 1e-5})
    yield Sample((_f32((7, 64), -1e-3, 1e-3),), {"eps": 1e-5})
    yield Sample((_f32((3, 1027)),), {"eps": 1e-5})


def _norm_backs() -> Iterator[Sample]:
    for k, sample in enumerate(_alike(2, apart=False)):
        yield Sample(sample.operands, {"eps": EPS[k % 3]})
    yield Sample((_f32((7, 64)), _f32((7, 64), 9.0, 11.0)), {"eps": 1e-5})
    yield Sample((_f32((3, 1027)), _f32((3, 1027))), {"eps": 1e-5})


def _group_norms(back: bool) -> Iterator[Sample]:
    cases: list[tuple[Shape, int]] = [
        ((1, 1, 1), 1), ((4, 3, 5), 2), ((2, 6, 2, 33), 3), ((3, 8, 7, 7), 8), ((2, 5, 4, 4), 2), ((1, 32, 16, 16), 4),
        ((7, 31), 1), ((3, 7, 5), 3), ((2, 4, 1, 65), 4), ((33,), 1),
    ]  # fmt: skip
    for i, (shape, n_groups) in enumerate(cases):
        operands = (_f32(shape), _f32(shape)) if back else (_f32(shape),)
        yield Sample(operands, {"n_groups": n_groups, "eps": (1e-5, 1e-6)[i % 2]})


def _norm_gains(bias: bool) -> Iterator[Sample]:
    for sample in _norms():
        a = sample.operands[0]
        assert a is not None
        gain = _f32(a.shape[-1:])
        yield Sample((a, gain, gain) if bias else (a, gain), sample.params)
        if bias:
            yield Sample((a, gain, None), sample.params)


def _norm_gain_backs(bias: bool) -> Iterator[Sample]:
    for sample in _norm_backs():
        g, a = sample.operands
        assert g is not None and a is not None
        gain = _f32(a.shape[-1:])
        yield Sample((g, a, gain, gain, gain) if bias else (g, a, gain, gain), sample.params)
        if bias:
            yield Sample((g, a, gain, gain, None), sample.params)
    gain = _f32((33,))
    yield Sample((_f32((3, 65, 33)), _f32((3, 65, 33)), gain, gain, *[gain] * bias), {"eps": 1e-5})


def _products() -> Iterator[tuple[Operand, Operand]]:
    """Operands (..., m, k) and (..., n, k) of mul_mat."""
    sizes = [(1, 1, 1), (1, 7, 3), (3, 1, 33), (2, 3, 7), (31, 32, 33), (32, 64, 65), (64, 33, 127), (65, 127, 31),
             (127, 65, 64), (7, 2, 1), (33, 3, 64), (1, 127, 127), (127, 1, 2), (130, 70, 600),
             (520, 9, 257)]  # fmt: skip
    for m, n, k in sizes:
        yield _f32((m, k)), _f32((n, k))
    batches: list[tuple[Shape, Shape]] = [
        ((2,), (2,)), ((1,), (3,)), ((2, 3), (2, 3)), ((2, 2), (2, 8)), ((1, 2), (3, 4)), ((2, 1), (6, 7)),
        ((), (2, 3)), ((1, 1), (2, 3)),
    ]  # fmt: skip
    for one, other in batches:
        yield _f32((*one, 7, 33)), _f32((*other, 3, 33))
        yield _f32((*one, 33, 32)), _f32((*other, 31, 32))
    layouts = [("permuted", "permuted"), ("transposed", "dense"), ("dense", "transposed"), ("sliced", "permuted"),
               ("transposed", "transposed"), ("dense", "sliced"), ("permuted", "transposed")]  # fmt: skip
    for one_layout, other_layout in layouts:
        yield _f32((2, 3, 7, 32), layout=one_layout), _f32((2, 3, 33, 32), layout=other_layout)
        yield _f32((1, 2, 65, 7), layout=one_layout), _f32((2, 4, 31, 7), layout=other_layout)


def _mul_mats() -> Iterator[Sample]:
    for a, b in _products():
        yield Sample((a, b))


def _mul_mat_backs() -> Iterator[Sample]:
    for a, b in _products():
        g = _f32((*b.shape[:-1], a.shape[-2]), layout=a.layout)
        yield Sample((g, b), shape=a.shape)


def _out_prods() -> Iterator[Sample]:
    for a, b in _products():
        swapped = [Operand((*x.shape[:-2], x.shape[-1], x.shape[-2]), layout=x.layout) for x in (a, b)]
        yield Sample((swapped[0], swapped[1]))


# (n_expert, m, k, n, n_used, rows of b for the n_used)
EXPERTS = [
    (1, 1, 1, 1, 1, 1), (2, 3, 7, 5, 2, 2), (4, 33, 32, 31, 2, 1), (8, 7, 65, 40, 3, 3), (3, 64, 33, 127, 1, 1),
    (5, 31, 127, 2, 4, 2), (64, 8, 16, 3, 2, 1), (2, 130, 17, 70, 2, 2), (8, 32, 64, 1, 2, 1), (4, 2, 300, 33, 2, 1),
]  # fmt: skip


def _mul_mat_ids() -> Iterator[Sample]:
    for n_expert, m, k, n, n_used, n_rows in EXPERTS:
        yield Sample((_f32((n_expert, m, k)), _f32((n, n_rows, k)), _ids((n, n_used), n_expert)))
    ids = _ids((7, 2), 4)
    yield Sample((_f32((4, 5, 33), layout="sliced"), _f32((7, 2, 33), layout="sliced"), ids))
    yield Sample((_f32((4, 5, 33), layout="permuted"), _f32((7, 2, 33), layout="permuted"), ids))
    yield Sample((_f32((4, 5, 33)), _f32((7, 1, 33)), Operand((7, 2), "values", values=(1, 1, 3), dtype="i32")))


def _mul_mat_id_rows_backs() -> Iterator[Sample]:
    for n_expert, m, k, n, n_used, _ in EXPERTS:
        yield Sample((_f32((n_expert, m, k)), _f32((n, n_used, m)), _ids((n, n_used), n_expert)))
    yield Sample((_f32((4, 5, 33), layout="permuted"), _f32((7, 2, 5), layout="sliced"), _ids((7, 2), 4)))


def _mul_mat_id_backs() -> Iterator[Sample]:
    for n_expert, m, k, n, n_used, n_rows in EXPERTS:
        operands = (_f32((n, n_used, m)), _f32((n, n_rows, k)), _ids((n, n_used), n_expert))
        yield Sample(operands, shape=(n_expert, m, k))
    operands = (_f32((7, 2, 5), layout="sliced"), _f32((7, 2, 33), layout="permuted"), _ids((7, 2), 4))
    yield Sample(operands, shape=(4, 5, 33))


def _conts() -> Iterator[Sample]:
    for sample in _unary():
        a = sample.operands[0]
        assert a is not None
        yield Sample((a,), shape=a.shape)
    yield Sample((_f32((3, 7, 32), layout="permuted"),), shape=(3, 224))
    yield Sample((_f32((7, 31), layout="transposed"),), shape=(217,))


def _reshapes() -> Iterator[Sample]:
    pairs: list[tuple[Shape, Shape]] = [
        ((1,), (1, 1, 1, 1)), ((6,), (2, 3)), ((2, 3), (6,)), ((2, 3), (3, 2)), ((127,), (127, 1)), ((7, 65), (455,)),
        ((2, 3, 31), (6, 31)), ((6, 31), (2, 3, 31)), ((3, 64), (3, 2, 32)), ((3, 2, 32), (3, 64)),
        ((2, 3, 7, 32), (42, 32)), ((42, 32), (2, 3, 7, 32)), ((33,), (1, 33)),
        ((2, 3, 2, 7), (84,)), ((65, 1, 1), (65,)), ((4, 33), (2, 2, 33)),
    ]  # fmt: skip
    for before, after in pairs:
        yield Sample((_f32(before),), shape=after)


# (shape of the whole, of the view, elements before it, its strides in elements)
WINDOWS: list[tuple[Shape, Shape, int, Shape]] = [
    ((127,), (127,), 0, (1,)), ((127,), (31,), 65, (1,)), ((1,), (1,), 0, (1,)), ((7, 33), (3, 33), 66, (33, 1)),
    ((7, 33), (7, 2), 31, (33, 1)), ((7, 33), (4, 33), 0, (66, 1)), ((5, 96), (5, 2, 16), 0, (96, 16, 1)),
    ((5, 96), (5, 2, 16), 32, (96, 16, 1)), ((5, 96), (5, 2, 16), 64, (96, 16, 1)),
    ((5, 96), (2, 5, 16), 32, (16, 96, 1)),
    ((2, 3, 7, 32), (2, 3, 7, 32), 0, (672, 224, 32, 1)), ((2, 3, 7, 32), (3, 7, 32), 672, (224, 32, 1)),
    ((2, 3, 7, 32), (2, 3, 7, 3), 29, (672, 224, 32, 1)), ((2, 3, 7, 32), (2, 2, 7, 1), 224, (672, 224, 32, 1)),
    ((8,), (5, 4), 0, (1, 1)), ((33,), (31, 3), 0, (1, 1)), ((64,), (2, 32), 0, (32, 1)),
]  # fmt: skip


def _in_bytes(strides: Shape) -> Shape:
    return tuple(ITEM * stride for stride in strides)


def strides_to_nb(shape: Shape, strides: Shape) -> list[int]:
    """A view's strides in ggml's order; axes of size 1 are put in front to make four."""
    nb = list(reversed(strides))
    while len(nb) < 4:
        nb.append(nb[-1] * (shape[-len(nb)] if len(nb) <= len(shape) else 1))
    return nb


def _views() -> Iterator[Sample]:
    for whole, part, before, strides in WINDOWS:
        yield Sample((_f32(whole),), {"offset": ITEM * before}, shape=part, strides=_in_bytes(strides))


def _casts() -> Iterator[Sample]:
    for shape, layout in (*DENSE, *ROWS_APART, *ELEMENTS_APART):
        for number in (F32, F16):
            yield Sample((_f32(shape, layout=layout),), {"type": number})
    yield Sample((_values((19,), *SPECIALS, math.inf, math.nan, 65519.0, 65520.0),), {"type": F16})


def _view_backs() -> Iterator[Sample]:
    for whole, part in PLACES:
        yield Sample((_f32(part), _f32(part), _f32(whole), None))
        yield Sample((_f32(part), _f32(part), _f32(whole), _f32(whole)))
        if len(part) > 1:
            yield Sample((_f32(part, layout="transposed"), _f32(part), _f32(whole), None))


def _permutes() -> Iterator[Sample]:
    axes = [(0, 1, 2, 3), (0, 2, 1, 3), (1, 0, 2, 3), (1, 2, 0, 3), (2, 0, 1, 3), (2, 1, 0, 3), (3, 2, 1, 0),
            (1, 2, 3, 0), (3, 0, 1, 2), (0, 3, 2, 1), (0, 1, 3, 2), (2, 3, 0, 1)]  # fmt: skip
    for k, places in enumerate(axes):
        params = {f"axis{i}": axis for i, axis in enumerate(places)}
        yield Sample((_f32(((2, 3, 7, 33), (3, 2, 31, 1), (1, 7, 2, 64))[k % 3]),), params)
        yield Sample((_f32((2, 3, 7, 32), layout=("permuted", "transposed", "sliced")[k % 3]),), params)


def _transposes() -> Iterator[Sample]:
    for shape, layout in (*DENSE[8:], *ROWS_APART, *ELEMENTS_APART):
        yield Sample((_f32(shape, layout=layout),))


# (sizes of a and b, dimension)
CONCATS: list[tuple[Shape, Shape, int]] = [
    ((1,), (1,), 0), ((33,), (2,), 0), ((7, 3), (7, 65), 0), ((2, 33), (31, 33), 1), ((2, 3, 7, 32), (2, 3, 7, 1), 0),
    ((2, 3, 7, 32), (2, 3, 2, 32), 1), ((2, 3, 7, 32), (2, 1, 7, 32), 2), ((2, 3, 7, 32), (3, 3, 7, 32), 3),
    ((3, 5, 2), (3, 5, 2), 2), ((64, 1), (1, 1), 1),
]  # fmt: skip


def _concats() -> Iterator[Sample]:
    for a, b, dim in CONCATS:
        yield Sample((_f32(a), _f32(b)), {"dim": dim})
    for one, other in (("permuted", "sliced"), ("sliced", "permuted")):
        yield Sample((_f32((2, 3, 31), layout=one), _f32((2, 3, 7), layout=other)), {"dim": 0})
        yield Sample((_f32((2, 3, 31), layout=one), _f32((2, 2, 31), layout=other)), {"dim": 1})


def _parts() -> Iterator[Sample]:
    for a, b, dim in CONCATS:
        whole = np.concatenate([np.empty(a), np.empty(b)], -1 - dim).shape
        yield Sample((_f32(whole),), {"dim": -1}, shape=a)
        yield Sample((_f32(whole),), {"dim": dim}, shape=b)
    yield Sample((_f32((3, 5, 7, 33)),), {"dim": -1}, shape=(2, 1, 6, 31))


# (small, large)
GROWTHS: list[tuple[Shape, Shape]] = [
    ((1,), (1,)), ((3,), (7,)), ((31,), (64,)), ((2, 3), (2, 3)), ((3, 5), (6, 10)), ((7, 1), (7, 65)),
    ((2, 3, 4), (2, 9, 8)), ((1, 2, 3, 5), (2, 3, 4, 7)), ((2, 2, 3, 32), (2, 2, 6, 64)), ((3, 10, 11), (3, 25, 36)),
]  # fmt: skip


def _growths() -> Iterator[Sample]:
    for small, large in GROWTHS:
        yield Sample((_f32(small),), shape=large)
    yield Sample((_f32((2, 3, 5), layout="sliced"),), shape=(2, 6, 10))
    yield Sample((_f32((2, 3, 5), layout="permuted"),), shape=(2, 6, 11))


def _upscale_backs() -> Iterator[Sample]:
    for small, large in GROWTHS:
        yield Sample((_f32(large),), shape=small)
    yield Sample((_f32((2, 6, 11), layout="permuted"),), shape=(2, 3, 5))


def _diags() -> Iterator[Sample]:
    shapes: list[Shape] = [(1,), (2,), (3,), (7,), (33,), (64,), (1, 65), (3, 1, 31), (2, 3, 1, 7), (1, 127)]
    for shape in shapes:
        yield Sample((_f32(shape),))
    yield Sample((_f32((3, 1, 31), layout="sliced"),))


def _diagonals() -> Iterator[Sample]:
    shapes: list[Shape] = [(1, 1), (2, 2), (3, 3), (7, 7), (33, 33), (64, 64), (3, 31, 31), (2, 3, 7, 7)]
    for shape in shapes:
        yield Sample((_f32(shape),))
    yield Sample((_f32((3, 31, 31), layout="transposed"),))
    yield Sample((_f32((2, 7, 7), layout="sliced"),))


# (sizes of a and b, elements before the window, its strides in elements but for the last axis)
SETS: list[tuple[Shape, Shape, int, Shape]] = [
    ((1,), (1,), 0, ()), ((127,), (31,), 65, ()), ((7, 33), (3, 33), 66, (33,)), ((7, 33), (7, 2), 31, (33,)),
    ((7, 33), (4, 33), 0, (66,)), ((2, 3, 7, 32), (2, 3, 7, 3), 29, (672, 224, 32)), ((8,), (2, 2), 1, (4,)),
    ((2, 3, 7, 32), (2, 3, 7, 32), 0, (672, 224, 32)), ((2, 3, 7, 32), (3, 7, 32), 672, (224, 32)),
    ((5, 96), (5, 2, 16), 32, (96, 16)),
]  # fmt: skip


def _set_params(shape: Shape, before: int, strides: Shape) -> dict[str, Any]:
    nb = strides_to_nb(shape, _in_bytes((*strides, 1)))
    return {"nb1": nb[1], "nb2": nb[2], "nb3": nb[3], "offset": ITEM * before}


def _sets() -> Iterator[Sample]:
    for a, b, before, strides in SETS:
        yield Sample((_f32(a), _f32(b)), _set_params(b, before, strides))
    yield Sample((_f32((5, 96)), _f32((4, 16), layout="sliced")), _set_params((4, 16), 32, (96,)))


def _set_windows() -> Iterator[Sample]:
    for a, b, before, strides in SETS:
        yield Sample((_f32(a),), _set_params(b, before, strides), shape=b)


# (kernel, images, s0, s1, p0, p1, d0, d1, is_2d)
PATCHES: list[tuple[Shape, Shape, tuple[int, ...]]] = [
    ((1, 1, 1, 1), (1, 1, 1, 1), (1, 1, 0, 0, 1, 1, 1)), ((2, 3, 3, 3), (2, 3, 5, 7), (1, 1, 1, 1, 1, 1, 1)),
    ((1, 2, 2, 5), (1, 2, 6, 9), (2, 1, 0, 1, 1, 2, 1)), ((4, 1, 3, 2), (3, 1, 7, 4), (1, 3, 2, 0, 2, 1, 1)),
    ((2, 2, 4, 4), (1, 2, 8, 8), (4, 4, 0, 0, 1, 1, 1)), ((1, 3, 5, 1), (2, 3, 5, 3), (3, 2, 1, 2, 1, 1, 1)),
    ((2, 1, 1), (1, 1, 1), (1, 0, 0, 0, 1, 0, 0)), ((2, 3, 3), (2, 3, 17), (1, 0, 1, 0, 1, 0, 0)),
    ((1, 2, 5), (1, 2, 12), (3, 0, 2, 0, 2, 0, 0)), ((4, 2, 4), (3, 2, 8), (4, 0, 0, 0, 1, 0, 0)),
]  # fmt: skip


def _patch_params(words: tuple[int, ...]) -> dict[str, Any]:
    return dict(zip(("s0", "s1", "p0", "p1", "d0", "d1", "is_2d"), words, strict=True))


def _im2cols() -> Iterator[Sample]:
    for a, b, words in PATCHES:
        yield Sample((_f32(a), _f32(b)), _patch_params(words))


def _im2col_backs() -> Iterator[Sample]:
    for a, b, words in PATCHES:
        params = _patch_params(words)
        yield Sample((_f32(a), _f32(_im2col(np.zeros(a), np.zeros(b), **params).shape)), params, shape=b)


# (kernel, images, stride)
SPREADS: list[tuple[Shape, Shape, int]] = [
    ((1, 1, 1), (1, 1), 1), ((3, 2, 4), (3, 7), 2), ((2, 5, 3), (2, 1), 3), ((4, 1, 2), (4, 9), 5),
    ((1, 3, 7), (1, 12), 1), ((1, 1, 1, 1), (1, 1, 1, 1), 1), ((3, 2, 2, 2), (2, 3, 4, 5), 2),
    ((2, 4, 3, 2), (1, 2, 3, 3), 1), ((1, 2, 4, 3), (3, 1, 2, 5), 3), ((2, 1, 1, 5), (2, 2, 3, 1), 2),
]  # fmt: skip


def _conv_transposes(dims: int) -> Iterator[Sample]:
    for more in range(2):
        for a, b, stride in SPREADS:
            if len(a) == dims + 2:
                yield Sample((_f32(a), _f32(b)), {"stride": stride + more})


def _conv_transpose_backs(kernel: bool) -> Iterator[Sample]:
    for a, b, stride in SPREADS:
        dims = len(a) - 2
        g = _f32(_conv_transpose(np.zeros(a), np.zeros(b), stride, dims).shape)
        yield Sample((g, _f32(b if kernel else a)), {"stride": stride, "dims": dims}, shape=a if kernel else b)


# (operand, k0, k1, s0, s1, p0, p1)
POOLS: list[tuple[Shape, tuple[int, ...]]] = [
    ((1, 1), (1, 1, 1, 1, 0, 0)), ((6, 8), (2, 2, 2, 2, 0, 0)), ((7, 9), (3, 2, 2, 2, 1, 0)),
    ((2, 3, 7, 31), (3, 3, 1, 1, 1, 1)), ((3, 5, 33), (4, 5, 3, 5, 0, 0)), ((2, 2, 8, 8), (8, 8, 8, 8, 0, 0)),
    ((1, 9, 65), (5, 1, 2, 3, 2, 0)),
]  # fmt: skip


def _pools(dims: int, back: bool) -> Iterator[Sample]:
    """Distinct elements, so that no difference quotient meets another largest."""
    for shape, words in POOLS:
        p = dict(zip(("k0", "k1", "s0", "s1", "p0", "p1"), words, strict=True))
        p = {name: value for name, value in p.items() if dims == 2 or name.endswith("0")}
        for kind in (0, 1):
            a = Operand(shape, "distinct")
            pool: Callable[..., Array] = _pool_1d if dims == 1 else _pool_2d
            g = _f32(pool(np.zeros(shape), kind, **p).shape)
            yield Sample((g, a) if back else (a,), {"kind": kind, **p})


def _argsorts() -> Iterator[Sample]:
    for k, (shape, layout) in enumerate((*DENSE[::2], *ROWS_APART)):
        yield Sample((_f32(shape, layout=layout),), {"order": k % 2})
    for order in (0, 1):
        yield Sample((_f32((3, 1027)),), {"order": order})
        yield Sample((_values((3, 64), 1.0, -1.0, 0.0, 1.0, 3.0),), {"order": order})
        yield Sample((_values((2, 9), math.inf, math.nan, 1.0, -math.inf),), {"order": order})


def _argmaxes() -> Iterator[Sample]:
    shapes: list[Shape] = [(1,), (7,), (1, 33), (3, 2), (7, 64), (31, 65), (127, 3), (2, 1)]
    for shape in shapes:
        yield Sample((_f32(shape),))
    yield Sample((_f32((7, 31), layout="sliced"),))
    yield Sample((_values((3, 5), 1.0, 3.0, 3.0, -1.0, 3.0, 0.0, -math.inf),))


def _count_equals() -> Iterator[Sample]:
    shapes: list[Shape] = [(1,), (7,), (33,), (3, 2), (7, 64), (31, 65), (127, 3), (2, 3, 7, 5), (1, 1), (9000, 3)]
    for k, shape in enumerate(shapes):
        yield Sample((_ids(shape, 1 + k % 4), _ids(shape, 1 + k % 3)))


def _aranges() -> Iterator[Sample]:
    for start, stop, step in ((0, 1, 1), (0, 7, 1), (1, 128, 1), (0, 2, 0.5), (-3, 3, 0.25), (5, 0, -1), (0, 10, 3),
                              (0.5, 33.5, 1), (2, 3, 7), (0, 3000, 1)):  # fmt: skip
        yield Sample((), {"start": float(start), "stop": float(stop), "step": float(step)})


TIMESTEPS = [(1, 2, 10000), (3, 7, 100), (7, 32, 10000), (33, 64, 1000), (2, 3, 10), (127, 8, 10000), (1, 320, 10000),
             (5, 33, 2), (31, 4, 10000), (2, 65, 50)]  # fmt: skip


def _timestep_embeddings() -> Iterator[Sample]:
    for n, dim, max_period in TIMESTEPS:
        yield Sample((_f32((n,), 0.0, 30.0),), {"dim": dim, "max_period": max_period})


def _timestep_embedding_backs() -> Iterator[Sample]:
    for n, dim, max_period in TIMESTEPS:
        g = _f32((n, dim + dim % 2), layout="dense" if n % 2 else "sliced")
        yield Sample((g, _f32((n,), 0.0, 30.0)), {"dim": dim, "max_period": max_period})


LOOKUPS: list[tuple[Shape, Shape]] = [
    ((1, 1), (1,)), ((2, 3), (7,)), ((127, 64), (33,)), ((65, 31), (127,)), ((3, 127), (2,)), ((7, 33), (1,)),
    ((32, 1), (64,)), ((2, 7, 3), (2, 5)), ((3, 31, 33), (3, 7)), ((1, 7, 32), (1, 3)), ((3, 7, 32), (2, 3, 7)),
    ((64, 65), (65,)), ((33, 2), (31,)), ((7, 127, 1), (7, 1)), ((1, 64), (3,)),
]  # fmt: skip


def _get_rows_samples() -> Iterator[Sample]:
    for table, ids in LOOKUPS:
        yield Sample((_f32(table), _ids(ids, table[-2])))
    yield Sample((_f32((7, 31), layout="sliced"), _ids((33,), 7)))
    yield Sample((_f32((3, 7, 32), layout="permuted"), _ids((3, 5), 7)))


def _get_rows_back_samples() -> Iterator[Sample]:
    for table, ids in LOOKUPS:
        yield Sample((_f32((*ids, table[-1])), _ids(ids, table[-2])), shape=table)
    yield Sample((_f32((33, 31), layout="sliced"), _ids((33,), 7)), shape=(7, 31))


def _add_rows_samples() -> Iterator[Sample]:
    for sample in _get_rows_back_samples():
        yield Sample((*sample.operands, _f32(sample.shape)), shape=sample.shape)  # type: ignore[arg-type]


def _diag_masks() -> Iterator[Sample]:
    shapes: list[Shape] = [(1, 1), (2, 2), (3, 3), (7, 7), (31, 31), (33, 33), (64, 64), (3, 65), (65, 3), (2, 3, 7, 7),
                           (2, 32, 32), (7,), (1, 127), (127, 1)]  # fmt: skip
    for shape in shapes:
        yield Sample((_f32(shape),), {"n_past": 0})
    for shape, n_past in (((3, 7), 4), ((1, 33), 32), ((2, 2, 31, 64), 33), ((7, 7), 100)):
        yield Sample((_f32(shape),), {"n_past": n_past})
    for shape, layout in ROWS_APART:
        yield Sample((_f32(shape, layout=layout),), {"n_past": 0})


def _soft_maxes() -> Iterator[Sample]:
    for k, (shape, layout) in enumerate((*DENSE, *ROWS_APART)):
        yield Sample((_f32(shape, -4.0, 4.0, layout), None), {"scale": (1.0, 0.125)[k % 2], "max_bias": 0.0})
    params = {"scale": 0.25, "max_bias": 0.0}
    for shape, n_rows in (((7, 7), 7), ((2, 3, 31, 33), 31), ((3, 32, 32), 64), ((1, 65), 2), ((2, 2, 64, 64), 64)):
        yield Sample((_f32(shape, -4.0, 4.0), _f32((n_rows, shape[-1]))), params)
        yield Sample((_f32(shape, -4.0, 4.0), Operand((n_rows, shape[-1]), "causal")), params)
    yield Sample((_f32((3, 7, 33), layout="permuted"), _f32((7, 33), layout="sliced")), params)
    for n_head, max_bias in ((1, 8.0), (3, 8.0), (4, 2.0), (12, 8.0)):
        yield Sample((_f32((2, n_head, 7, 33)), _f32((7, 33))), {"scale": 0.25, "max_bias": max_bias})
    yield Sample((_f32((7, 127), -80.0, 80.0), None), {"scale": 1.0, "max_bias": 0.0})
    yield Sample((_f32((3, 64), 3.0, 3.0), None), {"scale": 1.0, "max_bias": 0.0})
    yield Sample((_values((3, 4), 500.0, -500.0, 0.0, -math.inf), None), {"scale": 1.0, "max_bias": 0.0})


def _soft_max_scaled_backs() -> Iterator[Sample]:
    for k, sample in enumerate(_alike(2, 0.0, 1.0, apart=False)):
        yield Sample(sample.operands, {"scale": (1.0, 0.125)[k % 2]})


def _soft_max_backs() -> Iterator[Sample]:
    for sample in _soft_max_scaled_backs():
        yield Sample(sample.operands)


def _attention_operands() -> Iterator[tuple[list[Operand], Operand | None, dict[str, Any]]]:
    """q, k, v, a mask and the params: (batch, ctx, ctx_k, n_head, n_head_kv, head_dim, n_past)."""
    cases = [
        (1, 1, 1, 1, 1, 1, 0), (1, 2, 2, 2, 1, 7, 0), (2, 7, 7, 4, 2, 6, 0), (3, 33, 33, 2, 2, 32, 0),
        (1, 64, 64, 3, 1, 16, 0), (2, 65, 65, 2, 2, 33, 0), (1, 130, 130, 4, 2, 24, 0), (1, 1, 65, 2, 1, 32, 64),
        (2, 7, 40, 2, 1, 31, 33), (1, 65, 194, 2, 2, 8, 129), (1, 130, 130, 2, 1, 5, 1000), (1, 70, 33, 1, 1, 64, 0),
        (1, 33, 130, 2, 2, 3, 0), (1, 130, 70, 2, 2, 40, 5),
    ]  # fmt: skip
    for k, (batch, ctx, ctx_k, n_head, n_head_kv, head_dim, n_past) in enumerate(cases):
        for layouts in (("dense", "dense", "dense"), ("permuted", "sliced", "permuted"))[: 1 + k % 2]:
            shapes = (batch, ctx, n_head, head_dim), *[(batch, ctx_k, n_head_kv, head_dim)] * 2
            params = {"scale": (1.0, head_dim**-0.5)[k % 2], "n_past": n_past}
            yield [_f32(shape, layout=layout) for shape, layout in zip(shapes, layouts, strict=True)], None, params
    windows = [
        (1, 1, 1, 1, 1, 1, 0, 1), (2, 7, 7, 4, 2, 6, 0, 1), (1, 33, 33, 2, 1, 8, 0, 5), (1, 130, 130, 2, 2, 16, 0, 64),
        (1, 200, 200, 2, 1, 8, 0, 65), (2, 65, 65, 2, 1, 33, 0, 100), (1, 70, 200, 2, 2, 8, 130, 40),
        (1, 130, 130, 1, 1, 8, 10, 30), (1, 300, 300, 1, 1, 4, 0, 3),
    ]  # fmt: skip
    for k, (batch, ctx, ctx_k, n_head, n_head_kv, head_dim, n_past, window) in enumerate(windows):
        shapes = (batch, ctx, n_head, head_dim), *[(batch, ctx_k, n_head_kv, head_dim)] * 2
        mask = None, _f32((1, n_head, 1, ctx_k)), _f32((batch, 1, 1, ctx_k)), _f32((ctx_k,))
        params = {"scale": head_dim**-0.5, "n_past": n_past, "window": (window, window, 0)[k % 3]}
        yield [_f32(shape) for shape in shapes], mask[k % 4], params
    masks = [  # as above, and a window, a soft cap, and the mask's batch, n_head and ctx
        (1, 1, 1, 1, 1, 1, 0, 0, 1.5, (1, 1, 1)), (2, 7, 7, 4, 2, 6, 0, 0, 0.5, (2, 4, 7)),
        (1, 65, 65, 2, 1, 8, 0, 0, 0.0, (1, 1, 65)), (2, 70, 130, 2, 2, 16, 1000, 0, 3.0, (2, 1, 70)),
        (1, 130, 130, 2, 1, 5, 0, 40, 2.0, (1, 2, 130)), (2, 33, 33, 2, 1, 33, 1000, 0, 0.0, (2, 2, 33)),
        (1, 200, 200, 1, 1, 8, 0, 0, 30.0, (1, 1, 1)),
    ]  # fmt: skip
    for batch, ctx, ctx_k, n_head, n_head_kv, head_dim, n_past, window, soft_cap, sizes in masks:
        shapes = (batch, ctx, n_head, head_dim), *[(batch, ctx_k, n_head_kv, head_dim)] * 2
        params = {"scale": head_dim**-0.5, "n_past": n_past, "window": window, "soft_cap": soft_cap}
        yield [_f32(shape, -2, 2) for shape in shapes], _f32((*sizes, ctx_k)), params


def _attentions() -> Iterator[Sample]:
    for (q, k, v), mask, params in _attention_operands():
        batch, ctx, n_head, _ = q.shape
        yield Sample((q, k, v, _f32((batch, n_head, ctx)), mask), params)
    yield Sample((q, k, v, None, None), params)


def _cached_attentions() -> Iterator[Sample]:
    cases = [  # batch, ctx, n_head, n_head_kv, head_dim, n_past, n_blocks
        (1, 1, 1, 1, 1, 0, 1), (1, 1, 2, 1, 8, 63, 1), (2, 1, 4, 2, 16, 64, 2), (1, 1, 3, 3, 33, 127, 3),
        (3, 7, 2, 2, 24, 60, 2), (1, 9, 4, 1, 64, 0, 1), (2, 33, 2, 1, 5, 100, 3), (1, 65, 2, 2, 32, 0, 2),
        (1, 8, 2, 1, 40, 60, 1), (2, 5, 3, 3, 7, 3, 1),
    ]  # fmt: skip
    for i, (batch, ctx, n_head, n_head_kv, head_dim, n_past, n_blocks) in enumerate(cases):
        caches = (batch * n_head_kv, n_blocks, head_dim, 64), (batch * n_head_kv, n_blocks * 64, head_dim)
        layout = ("dense", "sliced")[i % 2]
        new = [_f32((batch, ctx, n, head_dim), layout=layout) for n in (n_head, n_head_kv, n_head_kv)]
        params = {"scale": (1.0, head_dim**-0.5)[i % 2], "soft_cap": (0.0, 0.0, 2.0)[i % 3]}
        yield Sample((*new, *map(_f32, caches), Operand((1,), "count", limit=n_past)), params)


@dataclass(frozen=True, eq=False)
class AttentionBackSample(Sample):
    """y and lse are not free: they are those of q, k and v."""

    def arrays(self) -> list[Array | None]:
        *given, _, q, k, v, lse, mask = super().arrays()
        exact = [x.astype(np.float64) for x in (q, k, v)]  # type: ignore[union-attr]
        y = _attention(*exact, mask=mask, **self.params)
        lse = _attention_writes(*exact, y, mask, **self.params)["lse"]
        return [*given, y.astype(np.float32), q, k, v, lse.astype(np.float32), mask]


def _attention_backs() -> Iterator[Sample]:
    for (q, k, v), mask, params in _attention_operands():
        batch, ctx, n_head, _ = q.shape
        written = [replace(x, layout="dense") for x in (q, k, v)]
        y, lse = _f32(q.shape), _f32((batch, n_head, ctx))
        yield AttentionBackSample(
            (*written, replace(q, layout=v.layout), y, q, k, v, lse, mask), {"window": 0, "soft_cap": 0.0} | params
        )


def _flash_operands() -> Iterator[tuple[tuple[Operand | None, ...], dict[str, Any]]]:
    """q, k, v, mask and the params: (batch, ctx, ctx_k, n_head, n_head_kv, head_dim, max_bias, softcap)."""
    cases = [
        (1, 1, 1, 1, 1, 1, 0.0, 0.0), (1, 2, 3, 2, 1, 7, 0.0, 0.0), (2, 7, 7, 4, 2, 6, 8.0, 0.0),
        (2, 33, 33, 2, 2, 32, 0.0, 2.0), (1, 65, 70, 3, 1, 16, 4.0, 3.0), (1, 130, 33, 2, 1, 8, 0.0, 0.0),
        (1, 1, 65, 4, 2, 33, 8.0, 0.0), (3, 5, 2, 1, 1, 64, 0.0, 1.0), (1, 64, 64, 2, 1, 5, 8.0, 0.0),
        (2, 3, 130, 6, 3, 4, 0.0, 0.0), (1, 3, 5, 2, 1, 8, 0.0, 0.0),
    ]  # fmt: skip
    for i, (batch, ctx, ctx_k, n_head, n_head_kv, head_dim, max_bias, softcap) in enumerate(cases):
        layout = ("dense", "permuted")[i % 2]
        shapes = (batch, n_head, ctx, head_dim), *[(batch, n_head_kv, ctx_k, head_dim)] * 2
        mask = _f32((ctx + i % 3, ctx_k)) if max_bias or i % 3 == 0 else None
        params = {"scale": head_dim**-0.5, "max_bias": max_bias, "logit_softcap": softcap}
        yield (*(_f32(shape, layout=layout) for shape in shapes), mask), params


def _flash_attentions() -> Iterator[Sample]:
    for operands, params in _flash_operands():
        yield Sample(operands, params)


def _flash_backs() -> Iterator[Sample]:
    for (q, k, v, mask), params in _flash_operands():
        assert q is not None and k is not None and v is not None
        batch, n_head, ctx, head_dim = q.shape
        written = [_f32(x.shape) for x in (q, k, v)]
        yield Sample((*written, _f32((batch, ctx, n_head, head_dim), layout=q.layout), q, k, v, mask), params)


def _ropes() -> Iterator[Sample]:
    def sample(shape: Shape, limit: int, n_dims: int, mode: int, layout: str = "dense", factors: bool = False,
               **params: float) -> Sample:  # fmt: skip
        freq_factors = _f32((n_dims // 2,), 0.5, 2.0) if factors else None
        params |= {"n_dims": n_dims, "mode": mode}
        return Sample((_f32(shape, layout=layout), _ids((shape[-3],), limit), freq_factors), params)

    for mode in (0, 2):
        yield sample((1, 1, 1, 2), 1, 2, mode)
        yield sample((1, 1, 2), 128, 2, mode)
        yield sample((2, 7, 3, 8), 128, 8, mode)
        yield sample((3, 31, 2, 32), 128, 32, mode)
        yield sample((1, 33, 1, 64), 128, 64, mode)
        yield sample((7, 2, 64), 512, 64, mode)
        yield sample((2, 3, 2, 32), 128, 8, mode)
        yield sample((2, 3, 2, 33), 128, 32, mode)
        yield sample((2, 3, 1, 127), 128, 6, mode)
        yield sample((2, 7, 3, 32), 128, 32, mode, "permuted")
        yield sample((2, 7, 3, 31), 128, 30, mode, "sliced")
        yield sample((2, 7, 3, 32), 128, 32, mode, freq_base=500000.0, freq_scale=0.25)
        yield sample((2, 7, 3, 32), 128, 16, mode, factors=True)
        yield sample((2, 7, 3, 32), 128, 32, mode, attn_factor=1.25)
        yarn = {"n_ctx_orig": 64, "freq_scale": 0.25, "beta_fast": 32.0, "beta_slow": 1.0}
        yield sample((2, 7, 3, 32), 128, 32, mode, ext_factor=1.0, **yarn)
        yield sample((2, 7, 3, 64), 512, 64, mode, ext_factor=0.5, attn_factor=1.5, factors=True, **yarn)


def _cross_entropies(back: bool) -> Iterator[Sample]:
    shapes: list[Shape] = [(1, 1), (1, 2), (2, 3), (7, 33), (31, 64), (33, 127), (127, 65), (2, 3, 31), (65, 7),
                           (3, 32), (64, 1), (2, 2, 3, 65), (3, 1027)]  # fmt: skip
    front = (_f32((1,)),) if back else ()
    for shape in shapes:
        rows = shape[:-1]
        yield Sample((*front, _f32(shape, -4.0, 4.0), _ids(rows, shape[-1]), _f32(rows, 0.0, 1.0)))
    for low, high in ((-80.0, 80.0), (3.0, 3.0), (990.0, 1000.0)):
        yield Sample((*front, _f32((7, 33), low, high), _ids((7,), 33), _values((7,), 1 / 7)))
    yield Sample((*front, _f32((31, 65)), _ids((31,), 65), _values((31,), 0.25, 0.0, 0.0, 0.5)))
    yield Sample((*front, _f32((3, 7)), _ids((3,), 7), _values((3,), 0.0)))
    if not back:
        yield Sample((_f32((7, 33)), _ids((7,), 33), _f32((7,), 0.0, 1.0)), {"scale": -0.5})


def _soft_cross_entropies(order: str) -> Iterator[Sample]:
    """Operands in this order: g, logits (l) and labels (p)."""
    shapes: list[Shape] = [(1, 1), (1, 2), (2, 3), (7, 33), (31, 64), (33, 127), (2, 3, 31), (65, 7), (3, 1027), (5,)]
    for shape in shapes:
        operands = {"g": _f32((1,)), "l": _f32(shape, -4.0, 4.0), "p": _f32(shape, 0.0, 1.0)}
        yield Sample(tuple(operands[k] for k in order))
    operands = {"g": _f32((1,)), "l": _f32((7, 33), -80.0, 80.0), "p": _values((7, 33), 0.0, 1.0, 0.0)}
    yield Sample(tuple(operands[k] for k in order))


def _linear_cross_entropies() -> Iterator[Sample]:
    sizes: list[tuple[int, Shape, int]] = [
        (1, (1,), 1), (2, (3,), 7), (33, (7,), 31), (65, (2, 3), 32), (127, (31,), 64), (3, (127,), 2), (64, (1,), 33),
        (130, (600,), 17), (1027, (7,), 3), (7, (2, 2, 3), 65),
    ]  # fmt: skip
    for n_vocab, rows, k in sizes:
        w, x = _f32((n_vocab, k)), _f32((*rows, k))
        operands = (w, x, _ids(rows, n_vocab), _f32(rows, 0.0, 1.0))
        yield Sample((*operands, None, None))
        yield Sample((*operands, w, x))
    w, x = _f32((33, 7)), _f32((31, 7))
    yield Sample((w, x, _ids((31,), 33), _values((31,), 0.25, 0.0, 0.0, 0.5), w, x))
    yield Sample((w, x, _ids((31,), 33), _f32((31,), 0.0, 1.0), w, x), {"scale": -0.5})


def _sizes() -> Iterator[Sample]:
    for shape in (*LINES[::3], *BLOCKS):
        yield Sample((), shape=shape)


def _writtens() -> Iterator[Sample]:
    for shape in (*LINES[::3], *BLOCKS):
        yield Sample((_f32(shape), _f32((3,))))


def _cpys() -> Iterator[Sample]:
    for shape in ((1,), (33,), (7, 31), (2, 3, 7, 32), (65, 127)):
        yield Sample((_f32(shape), _f32(shape)))
    for a, b in (("permuted", "dense"), ("dense", "permuted"), ("transposed", "sliced"), ("sliced", "transposed")):
        yield Sample((_f32((2, 3, 7, 32), layout=a), _f32((2, 3, 7, 32), layout=b)))
    yield Sample((_f32((3, 7, 32)), _f32((7, 96))))
    yield Sample((_f32((31, 6), layout="transposed"), _f32((186,))))
    yield Sample((_f32((217,)), _f32((7, 31), layout="sliced")))


# The derivative of `updated` is that of two windows of one memory, which a sample has not: see test_order.py. That of
# `cast` takes no notice of rounding, as a difference quotient does: see test_types.py.
NO_SAMPLE_GRADIENT = {"updated", "cast"}
PLACES: list[tuple[Shape, Shape]] = [  # a tensor, and one that would lie at its start
    ((1,), (1,)), ((33,), (31,)), ((7, 31), (7, 31)), ((7, 31), (2, 64)), ((127,), (3, 2, 7)), ((2, 3, 7, 32), (3, 65)),
    ((2, 3), (3,)), ((65, 2), (1,)), ((3, 33), (2, 7)), ((1, 127), (64,)),
]  # fmt: skip


def _view_as_samples() -> Iterator[Sample]:
    for whole, part in PLACES:
        yield Sample((_f32(whole), _f32(part)))


def _dropouts() -> Iterator[Sample]:
    for k, (shape, _) in enumerate(DENSE):
        yield Sample((_f32(shape), _ids((4,), 1 << 20)), {"rate": (0.1, 0.5, 0.9)[k % 3], "stream": k})
    nothing = Operand((4,), "values", values=(1, 2, 3, 0), dtype="i32")
    yield Sample((_f32((3, 33)), nothing), {"rate": 0.5, "stream": 1})


def _accumulates() -> Iterator[Sample]:
    for k, (shape, _) in enumerate(DENSE):
        yield Sample((_f32(shape), _f32(shape), _values((1,), k % 2)))


def _sum_sqrs() -> Iterator[Sample]:
    for k, (shape, _) in enumerate(DENSE):
        yield Sample((_f32(shape), _values((1,), 2.5) if k % 2 else None))
    yield Sample((_f32((3, 127, 127)), None))


N_HYPER = 12


def _hyper(*values: float) -> Operand:
    return _values((N_HYPER,), *values, *[0.0] * (N_HYPER - len(values)))


def _updates(
    own: Callable[[int], tuple[float, ...]], *states: tuple[float, float], cautious: bool = True
) -> Iterator[Sample]:
    """own: an op's numbers at step t. states: least and largest number in what it keeps."""

    def sample(
        shape: Shape, k: int, sum_sqr: float, t: int = 3, lr: float = 1e-3, clip: float = 1.0, cut: float = 0.0
    ) -> Sample:
        operands = (_f32(shape), _f32(shape), *(_f32(shape, *limits) for limits in states),
                    _hyper(lr, 0.1, clip, cut, *own(t)), _values((1,), sum_sqr))  # fmt: skip
        params = {"rate": (1.0, 0.25)[k % 2], "decay": (1.0, 0.0, 2.5)[k % 3]}
        return Sample(operands, params | ({"cautious": k // 3 % 2} if cautious else {}))

    for k, (shape, _) in enumerate(DENSE):
        yield sample(shape, k, (0.25, 100.0)[k // 2 % 2], cut=(0.0, 0.02)[k // 4 % 2])
    for sum_sqr, clip in ((100.0, 0.0), (1.0, 1.0), (math.inf, 1.0), (math.nan, 1.0), (math.inf, 0.0)):
        yield sample((3, 33), 0, sum_sqr, clip=clip)
    yield sample((3, 33), 3, 0.25, t=1)
    yield sample((3, 33), 0, 0.25, t=10000, lr=0.0)


def _adafactors(t: int, *, whole: bool) -> Iterator[Sample]:
    """As torch's and as optax's, by turns."""
    forms = ((0.0, 2.0**-23, 1e-3, 1.0, t**-0.5), (1e-30, 0.0, 0.5, 1.0, 0.0))
    for k, sample in enumerate(_updates(lambda _: (1 - t**-0.8, *forms[0]), (0.0, 0.1))):
        p, g, v, hyper, sum_sqr = sample.operands
        shape = p.shape  # type: ignore[union-attr]
        hyper = _values((N_HYPER,), *hyper.values[:5], *forms[k % 2], 0.0, 0.0)  # type: ignore[union-attr]
        rows = _f32((math.prod(shape[:-1]),), 0.01, 0.1)
        columns = _f32((math.prod(shape[:-2]) * shape[-1],), 0.01, 0.1)
        yield replace(sample, operands=(p, g, v, hyper, sum_sqr) if whole else (p, g, rows, columns, hyper, sum_sqr))


def _schedule_frees() -> Iterator[Sample]:
    for k, sample in enumerate(_updates(lambda t: (0.9, 0.999, 1e-8, 1 - 0.999**t, t == 1), cautious=False)):
        p, g, hyper, sum_sqr = sample.operands
        shape = p.shape  # type: ignore[union-attr]
        state = (_f32(shape, 0.0, 0.1), _f32(shape), _f32(shape), _values((2,), (2e-3, 5e-4)[k % 2], 3e-6))
        yield replace(sample, operands=(p, g, *state, hyper, sum_sqr))


def _emas() -> Iterator[Sample]:
    for k, (shape, _) in enumerate(DENSE):
        sum_sqr = _values((1,), (1.0, math.nan)[k % 5 == 4])
        yield Sample((_f32(shape), _f32(shape), _hyper(1e-3, 0.1, 1.0, 0.0, 0.99, k % 3 == 0), sum_sqr))


def _momenta() -> Iterator[Sample]:
    for k, (shape, _) in enumerate(DENSE):
        hyper = _hyper(1e-3, 0.1, 1.0, (0.0, 0.02)[k // 2 % 2], 0.95, k % 2)
        yield Sample((_f32(shape), _f32(shape, -0.1, 0.1), hyper, _values((1,), (0.25, 100.0)[k // 4 % 2])))


def _units() -> Iterator[Sample]:
    for shape, _ in DENSE:
        yield Sample((_f32(shape), _values((1,), 2.5)), {"eps": 1e-7})


def _newton_schulzes() -> Iterator[Sample]:
    for n in (1, 2, 3, 7, 31, 32, 33, 64, 65, 127):
        shape = (2, n, n) if n < 32 else (n, n)
        yield Sample((_f32(shape), _f32(shape)), {"a": 3.4445, "b": -4.775, "c": 2.0315})


def _normuons() -> Iterator[Sample]:
    for sample in _updates(lambda t: (0.95, 1.0, 0.95, 1e-8)):
        shape = sample.operands[0].shape  # type: ignore[union-attr]
        rows = _f32((math.prod(shape[:-1]),), 0.0, 0.1)
        yield replace(sample, operands=(*sample.operands[:2], rows, *sample.operands[2:]))


def _opt_step_adamws() -> Iterator[Sample]:
    for k, (shape, _) in enumerate(DENSE[::2]):
        params = {"iteration": 1 + 7 * k, "alpha": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8,
                  "weight_decay": 0.1 * (k % 2)}  # fmt: skip
        yield Sample((_f32(shape), _f32(shape), _f32(shape, -0.1, 0.1), _f32(shape, 0.0, 0.1)), params)
    yield Sample((_f32((130, 65)), _f32((130, 65)), _f32((130, 65), -0.1, 0.1), _f32((130, 65), 0.0, 0.1)), params)


_GENERATORS: dict[str, Iterator[Sample]] = {
    "add": _broadcast(),
    "sub": _broadcast(),
    "mul": _broadcast(),
    "div": _broadcast(0.5, 2.0),
    "add1": (Sample((s.operands[0], _f32((1,) * (1 + k % 4)))) for k, s in enumerate(_few(_unary()))),
    "scale": _scale(),
    "sqr": _unary(specials=(0.0, -0.0, 1e-18, -1e18, *INFINITE)),
    "sqrt": _unary(0.0, 2.0, (0.0, TINY, HUGE, 1e-30, -1.0, *INFINITE)),
    "log": _unary(1e-3, 2.0, (0.0, TINY, HUGE, 1e-30, 1.0, 1.0 + 2**-23, 1.0 - 2**-24, -1.0, *INFINITE)),
    "sin": _few(_unary(-20.0, 20.0, SPECIALS)),
    "cos": _few(_unary(-20.0, 20.0, SPECIALS)),
    "clamp": (replace(s, params=LIMITS[k % 4]) for k, s in enumerate(_few(_unary(specials=SPECIALS + INFINITE)))),
    "within": (replace(s, params=LIMITS[k % 4]) for k, s in enumerate(_few(_unary(specials=SPECIALS + INFINITE)))),
    "abs": _few(_unary(specials=SPECIALS + INFINITE)),
    "sgn": _few(_unary(specials=SPECIALS + INFINITE)),
    "neg": _unary(specials=SPECIALS + INFINITE),
    "exp": _activation(SPECIALS + INFINITE),
    "step": _unary(specials=SPECIALS + INFINITE),
    "relu": _unary(specials=SPECIALS + INFINITE),
    "leaky_relu": _few(_unary(specials=SPECIALS + INFINITE), slope=0.2),
    "leaky_step": _few(_unary(specials=SPECIALS + INFINITE), slope=0.2),
    "elu": _few(_unary(specials=SPECIALS + INFINITE)),
    "elu_back": _few(_alike(2)),
    "tanh": _activation(SPECIALS + INFINITE),
    "sigmoid": _activation(SPECIALS + INFINITE),
    "silu": _activation((*SPECIALS, math.inf, math.nan)),
    "silu_back": (replace(s, operands=s.operands[::-1]) for s in _activation_back()),
    "gelu": _activation(),
    "gelu_back": _activation_back(),
    "gelu_quick": _activation(),
    "gelu_erf": _activation((*SPECIALS, math.inf, math.nan)),
    "gelu_erf_back": _activation_back(),
    "gelu_erf_slope": _activation(),
    "hardsigmoid": _hard_activation(SPECIALS + INFINITE),
    "hardsigmoid_back": _few(_alike(2, -6.0, 6.0)),
    "hardswish": _hard_activation(SPECIALS),
    "hardswish_back": _few(_alike(2, -6.0, 6.0)),
    "swiglu": _alike(2),
    "swiglu_back": _swiglu_backs(),
    "sum": _sums(),
    "sum_rows": _row_sums(),
    "mean": _row_sums(),
    "count_equal": _count_equals(),
    "repeat": _repeats(),
    "repeat_back": _repeat_backs(),
    "expand": _expands(),
    "sum_products": _sums_of_products(),
    "norm": _norms(),
    "norm_back": _norm_backs(),
    "norm_gain": _norm_gains(bias=True),
    "norm_gain_back": _norm_gain_backs(bias=True),
    "rms_norm": _norms(),
    "rms_norm_back": _norm_backs(),
    "rms_norm_gain": _norm_gains(bias=False),
    "rms_norm_gain_back": _norm_gain_backs(bias=False),
    "group_norm": _group_norms(back=False),
    "group_norm_back": _group_norms(back=True),
    "mul_mat": _mul_mats(),
    "mul_mat_back": _mul_mat_backs(),
    "out_prod": _out_prods(),
    "mul_mat_id": _mul_mat_ids(),
    "mul_mat_id_back": _mul_mat_id_backs(),
    "mul_mat_id_rows_back": _mul_mat_id_rows_backs(),
    "dup": _few(_unary()),
    "cont": _conts(),
    "reshape": _reshapes(),
    "stop_gradient": _reshapes(),
    "view": _views(),
    "view_back": _view_backs(),
    "permute": _permutes(),
    "permute_back": _permutes(),
    "transpose": _transposes(),
    "concat": _concats(),
    "part": _parts(),
    "pad": _growths(),
    "upscale": _growths(),
    "upscale_back": _upscale_backs(),
    "diag": _diags(),
    "diagonal": _diagonals(),
    "set": _sets(),
    "acc": _sets(),
    "clear": _sets(),
    "window": _set_windows(),
    "get_rows": _get_rows_samples(),
    "get_rows_back": _get_rows_back_samples(),
    "add_rows": _add_rows_samples(),
    "im2col": _im2cols(),
    "im2col_back": _im2col_backs(),
    "conv_transpose_1d": _conv_transposes(1),
    "conv_transpose_2d": _conv_transposes(2),
    "conv_transpose_kernel_back": _conv_transpose_backs(kernel=True),
    "conv_transpose_data_back": _conv_transpose_backs(kernel=False),
    "pool_1d": _pools(1, back=False),
    "pool_1d_back": _pools(1, back=True),
    "pool_2d": _pools(2, back=False),
    "pool_2d_back": _pools(2, back=True),
    "argsort": _argsorts(),
    "argmax": _argmaxes(),
    "arange": _aranges(),
    "timestep_embedding": _timestep_embeddings(),
    "timestep_embedding_back": _timestep_embedding_backs(),
    "diag_mask_inf": _diag_masks(),
    "diag_mask_zero": _diag_masks(),
    "soft_max": _soft_maxes(),
    "soft_max_back": _soft_max_backs(),
    "soft_max_scaled_back": _soft_max_scaled_backs(),
    "attention": _attentions(),
    "cached_attention": _cached_attentions(),
    "attention_back": _attention_backs(),
    "flash_attn_ext": _flash_attentions(),
    "flash_attn_ext_back": _flash_backs(),
    "rope": _ropes(),
    "rope_back": _ropes(),
    "cross_entropy": _cross_entropies(back=False),
    "cross_entropy_back": _cross_entropies(back=True),
    "linear_cross_entropy": _linear_cross_entropies(),
    "soft_cross_entropy": _soft_cross_entropies("lp"),
    "soft_cross_entropy_back": _soft_cross_entropies("glp"),
    "soft_cross_entropy_grad": _soft_cross_entropies("lpg"),
    "empty": _sizes(),
    "written": _writtens(),
    "cpy": _cpys(),
    "cast": _casts(),
    "updated": _view_as_samples(),
    "view_as": _view_as_samples(),
    "cleared": _view_as_samples(),
    "dropout": _dropouts(),
    "accumulate": _accumulates(),
    "sum_sqr": _sum_sqrs(),
    "adamw": _updates(lambda t: (0.9, 0.999, 1e-8, 1 - 0.9**t, 1 - 0.999**t), (-0.1, 0.1), (0.0, 0.1)),
    "sgd": _updates(lambda t: (), cautious=False),
    "sgd_momentum": _updates(lambda t: (0.9, t == 3), (-0.1, 0.1), cautious=False),
    "lion": _updates(lambda t: (0.9, 0.99), (-0.1, 0.1)),
    "adafactor": _adafactors(3, whole=False),
    "adafactor_whole": _adafactors(3, whole=True),
    "schedule_free": _schedule_frees(),
    "ema": _emas(),
    "momentum": _momenta(),
    "unit": _units(),
    "newton_schulz": _newton_schulzes(),
    "muon": _updates(lambda t: ()),
    "normuon": _normuons(),
    "opt_step_adamw": _opt_step_adamws(),
}

SAMPLES: dict[str, list[Sample]] = {
    op: [replace(sample, op=op, index=i) for i, sample in enumerate(samples)] for op, samples in _GENERATORS.items()
}
