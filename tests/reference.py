"""The oracle of the op tests: every op in numpy float64, and the samples it is tested on.

`REFERENCE[op](*operands, **params)` takes arrays in numpy order (None for an absent operand) and is written from the
definition in the op's docstring or paper, on purpose without a look at the C or at the derivative rules. Sized ops
take `shape`; `view` also takes `strides`, bytes in numpy order. `WRITES` gives what an op leaves in its operands.
`SAMPLES[op]` are the inputs. Used by the tests of every ISA level, of gradients, and of this module itself.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]

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


def _norm_back(g: Array, a: Array, eps: float) -> Array:
    y, variance = _norm(a, eps), a.var(-1, keepdims=True)
    return (g - g.mean(-1, keepdims=True) - y * (g * y).mean(-1, keepdims=True)) / np.sqrt(variance + eps)


def _rms_norm(a: Array, eps: float) -> Array:
    return a / np.sqrt((a**2).mean(-1, keepdims=True) + eps)


def _rms_norm_back(g: Array, a: Array, eps: float) -> Array:
    square = (a**2).mean(-1, keepdims=True) + eps
    return g / np.sqrt(square) - a * (g * a).mean(-1, keepdims=True) / square**1.5


def _soft_max(a: Array, mask: Array | None = None, scale: float = 1.0, max_bias: float = 0.0) -> Array:
    assert max_bias == 0.0, "ALiBi has no reference"
    z = a * scale if mask is None else a * scale + mask[: _with_rank(a, 2).shape[-2]].reshape(-1, a.shape[-1])
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _soft_max_back(g: Array, y: Array, scale: float) -> Array:
    return scale * y * (g - (g * y).sum(-1, keepdims=True))


def _above_diagonal(a: Array, n_past: int) -> Array:
    rows, columns = np.indices(_with_rank(a, 2).shape[-2:])
    return (columns > rows + n_past).reshape(_with_rank(a, 2).shape[-2:] if a.ndim > 1 else a.shape)


def _diag_mask(value: float) -> Callable[..., Array]:
    return lambda a, n_past=0: np.where(_above_diagonal(a, n_past), value, a)


# ---------------------------------------------------------------- products


def _mul_mat(a: Array, b: Array) -> Array:
    rank = max(a.ndim, b.ndim, 2)
    b = _with_rank(b, rank)
    return b @ _group_repeat(_with_rank(a, rank), b.shape).swapaxes(-1, -2)


def _mul_mat_back(g: Array, b: Array, shape: Shape) -> Array:
    rank = max(g.ndim, b.ndim, len(shape), 2)
    return _sum_groups(_with_rank(g, rank).swapaxes(-1, -2) @ _with_rank(b, rank), shape)


def _out_prod(a: Array, b: Array) -> Array:
    rank = max(a.ndim, b.ndim, 2)
    return _with_rank(b, rank).swapaxes(-1, -2) @ _with_rank(a, rank)


# ---------------------------------------------------------------- layout


def _window(shape: Shape, offset: int, strides: Shape) -> Array:
    """For each element of a view its number in the flat memory."""
    steps = zip(np.indices(shape), strides, strict=True)
    return np.asarray(offset // ITEM + sum(index * (stride // ITEM) for index, stride in steps))


def _view(a: Array, offset: int, shape: Shape, strides: Shape) -> Array:
    return a.reshape(-1)[_window(shape, offset, strides)]


def _view_back(g: Array, offset: int, nb1: int, nb2: int, nb3: int, shape: Shape) -> Array:
    flat = np.zeros(math.prod(shape))
    np.add.at(flat, _window(g.shape, offset, (nb3, nb2, nb1, ITEM)[4 - g.ndim :]), g)
    return flat.reshape(shape)


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


# ---------------------------------------------------------------- attention


def _rotation(
    a: Array, positions: Array, freq_factors: Array | None, n_dims: int, freq_base: float, freq_scale: float
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
        assert ext_factor == 0.0, "YaRN has no reference"
        cos, sin = _rotation(a, positions, freq_factors, n_dims, freq_base, freq_scale)
        return _rotate(a, attn_factor * cos, direction * attn_factor * sin, n_dims, mode)

    return rope


# ---------------------------------------------------------------- loss


def _log_soft_max(a: Array) -> Array:
    z = a - a.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def _cross_entropy(logits: Array, targets: Array, weights: Array) -> Array:
    logp = _log_soft_max(logits).reshape(-1, logits.shape[-1])
    at_targets = logp[np.arange(len(logp)), targets.reshape(-1)]
    return np.sum(weights.reshape(-1) * at_targets, keepdims=True)


def _cross_entropy_back(g: Array, logits: Array, targets: Array, weights: Array) -> Array:
    p = _soft_max(logits).reshape(-1, logits.shape[-1])
    one_hot = np.eye(p.shape[-1])[targets.reshape(-1)]
    return (g.reshape(()) * weights.reshape(-1, 1) * (one_hot - p)).reshape(logits.shape)


def _linear_cross_entropy(
    w: Array, x: Array, targets: Array, weights: Array, dw: Array | None = None, dx: Array | None = None
) -> Array:
    return _cross_entropy(_mul_mat(w, x), targets, weights)


def _linear_cross_entropy_writes(
    w: Array, x: Array, targets: Array, weights: Array, dw: Array | None = None, dx: Array | None = None
) -> dict[str, Array]:
    if dw is None:
        return {}
    dlogits = _cross_entropy_back(np.ones(1), _mul_mat(w, x), targets, weights).reshape(-1, w.shape[-2])
    rows = x.reshape(-1, x.shape[-1])
    return {"dw": (dlogits.T @ rows).reshape(w.shape), "dx": (dlogits @ w).reshape(x.shape)}


# ---------------------------------------------------------------- optimiser


def _accumulate(total: Array, g: Array, keep: Array) -> Array:
    return keep.reshape(()) * total + g


def _sum_sqr(a: Array, total: Array | None = None) -> Array:
    return np.sum(a**2, keepdims=True).reshape(1) + (0.0 if total is None else total)


def _adamw_writes(
    p: Array, g: Array, m: Array, v: Array, hyper: Array, sum_sqr: Array, decay: int = 1
) -> dict[str, Array]:
    lr, beta1, beta2, eps, weight_decay, clip, correction1, correction2 = hyper.reshape(-1)
    norm = math.sqrt(sum_sqr.reshape(())) if np.isfinite(sum_sqr).all() else math.inf
    if not math.isfinite(norm):
        return {"p": p, "m": m, "v": v}
    if clip > 0 and norm > clip:
        g = g * (clip / (norm + 1e-6))
    m = beta1 * m + (1.0 - beta1) * g
    v = beta2 * v + (1.0 - beta2) * g**2
    update = (m / correction1) / (np.sqrt(v / correction2) + eps) + (weight_decay * p if decay else 0.0)
    return {"p": p - lr * update, "m": m, "v": v}


# ---------------------------------------------------------------- the table

REFERENCE: dict[str, Callable[..., Array]] = {
    "add": lambda a, b: a + _tile(b, a.shape),
    "sub": lambda a, b: a - _tile(b, a.shape),
    "mul": lambda a, b: a * _tile(b, a.shape),
    "div": lambda a, b: a / _tile(b, a.shape),
    "scale": lambda a, s: a * s,
    "sqr": lambda a: a**2,
    "sqrt": np.sqrt,
    "log": np.log,
    "neg": lambda a: -a,
    "exp": np.exp,
    "step": lambda a: np.where(a > 0, 1.0, 0.0),
    "relu": lambda a: np.maximum(a, 0.0),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "silu_back": _silu_back,
    "gelu": lambda a: a * _sigmoid(_gelu_argument(a)),
    "gelu_back": _gelu_back,
    "gelu_erf": lambda a: a * _normal_cdf(a),
    "gelu_erf_back": lambda g, a: g * _gelu_erf_slope(a),
    "gelu_erf_slope": _gelu_erf_slope,
    "swiglu": lambda a, b: _silu(a) * b,
    "sum": lambda a: np.sum(a).reshape(1),
    "sum_rows": lambda a: a.sum(-1, keepdims=True),
    "repeat": lambda a, shape: _tile(a, shape),
    "repeat_back": lambda a, shape: _sum_tiles(a, shape),
    "norm": _norm,
    "norm_back": _norm_back,
    "norm_gain": lambda a, gain, eps: _norm(a, eps) * gain.reshape(-1),
    "rms_norm": _rms_norm,
    "rms_norm_back": _rms_norm_back,
    "rms_norm_gain": lambda a, gain, eps: _rms_norm(a, eps) * gain.reshape(-1),
    "mul_mat": _mul_mat,
    "mul_mat_back": _mul_mat_back,
    "out_prod": _out_prod,
    "cont": lambda a, shape=None: a.reshape(a.shape if shape is None else shape),
    "reshape": lambda a, shape: a.reshape(shape),
    "view": _view,
    "view_back": _view_back,
    "permute": _permute,
    "permute_back": _permute_back,
    "transpose": lambda a: _with_rank(a, 2).swapaxes(-1, -2),
    "get_rows": _get_rows,
    "get_rows_back": _get_rows_back,
    "diag_mask_inf": _diag_mask(-np.inf),
    "diag_mask_zero": _diag_mask(0.0),
    "soft_max": _soft_max,
    "soft_max_back": _soft_max_back,
    "rope": _rope(1.0),
    "rope_back": _rope(-1.0),
    "cross_entropy": _cross_entropy,
    "cross_entropy_back": _cross_entropy_back,
    "linear_cross_entropy": _linear_cross_entropy,
    "empty": lambda shape: np.zeros(shape),  # only the shape is defined
    "accumulate": _accumulate,
    "sum_sqr": _sum_sqr,
    "adamw": lambda *operands, **params: _adamw_writes(*operands, **params)["p"],
}

WRITES: dict[str, Callable[..., dict[str, Array]]] = {
    "accumulate": lambda total, g, keep: {"total": _accumulate(total, g, keep)},
    "adamw": _adamw_writes,
    "linear_cross_entropy": _linear_cross_entropy_writes,
}
