"""Reductions and what is made of them, over any axes as numpy has them: sums, means, extremes, softmax, running sums.

ggml's ops work on rows, the last axis: other axes are moved there and back, by copies where need be. Used by models and
by methods of `Tensor`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from ggmlgraph.errors import ShapeError
from ggmlgraph.table import ops
from ggmlgraph.tracing.layout import axis_of, moved
from ggmlgraph.tracing.tensor import Tensor

Axes = int | Sequence[int] | None


def _reduced(x: Tensor, axis: Axes, keepdims: bool, of_rows: Callable[[Tensor], Tensor]) -> Tensor:
    """of_rows, which takes (rows, n) to (rows, 1), over axes of x, or over all of them, then of shape (1,)."""
    axes = _axes(x, axis)
    rest = [i for i in range(len(x.shape)) if i not in axes]
    order = (*rest, *axes)
    moved_last = x if order == tuple(sorted(order)) else x.permute(*order)
    rows = moved_last.reshape(prod(x.shape[i] for i in rest), prod(x.shape[i] for i in axes))
    kept = [1 if i in axes else n for i, n in enumerate(x.shape)]
    shape = kept if keepdims else [x.shape[i] for i in rest] or [1]
    return of_rows(rows).reshape(*shape)


def _axes(x: Tensor, axis: Axes) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(len(x.shape)))
    axes = [axis_of(x, a) for a in (axis if isinstance(axis, tuple | list) else (axis,))]
    if len(set(axes)) < len(axes) or not axes:
        raise ShapeError(f"{x.graph.here()}: axes {axis!r:.80} of {x!r}: one is named twice, or none is")
    return tuple(sorted(axes))


def sum(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """Sum over axes; over all, of shape (1,), where axis is None."""
    if axis is None and not keepdims:
        return ops.sum(x.contiguous())
    return _reduced(x, axis, keepdims, ops.sum_rows)


def mean(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """Mean over axes; over all, of shape (1,), where axis is None."""
    if axis is None and not keepdims:
        return sum(x) * (1.0 / prod(x.shape))
    return _reduced(x, axis, keepdims, ops.mean)


def var(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """Mean over axes of the squared distance from their mean: numpy's, and torch's with correction=0."""
    return mean(ops.sqr(x - mean(x, axis if axis is not None else _axes(x, None), keepdims=True)), axis, keepdims)


def max(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """Largest element over axes. The gradient goes to the last of equal ones."""
    return _reduced(x, axis, keepdims, _largest)


def min(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """Smallest element over axes. The gradient goes to the last of equal ones."""
    return ops.neg(max(ops.neg(x), axis, keepdims))


def _largest(rows: Tensor) -> Tensor:
    n_rows, n = rows.shape
    return ops.get_rows(rows.reshape(n_rows, n, 1), ops.argmax(rows).reshape(n_rows, 1)).reshape(n_rows, 1)


def argmax(x: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Where the largest element is, int32: the last of equal ones. axis None: among all, in order."""
    return _reduced(x, axis, keepdims, ops.argmax)


def argmin(x: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Where the smallest element is, int32: the last of equal ones. axis None: among all, in order."""
    return argmax(ops.neg(x), axis, keepdims)


def logsumexp(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) over axes: the largest element less the logarithm of its softmax, so that nothing overflows."""
    return _reduced(x, axis, keepdims, _log_of_rows)


def _log_of_rows(rows: Tensor) -> Tensor:
    n_rows, n = rows.shape
    place = ops.argmax(rows).reshape(n_rows, 1)
    largest = ops.get_rows(rows.reshape(n_rows, n, 1), place)
    share = ops.get_rows(ops.soft_max(rows).reshape(n_rows, n, 1), place)
    return (largest - ops.log(share)).reshape(n_rows, 1)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) over an axis."""
    axis, last = axis_of(x, axis), len(x.shape) - 1
    return moved(ops.soft_max(moved(x, axis, last).contiguous()), last, axis)


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """log(softmax(x)) over an axis, finite wherever x is."""
    return x - logsumexp(x, axis, keepdims=True)


def cumsum(x: Tensor, axis: int) -> Tensor:
    """Running sums along an axis: a product with a triangle of ones, so of n^2 numbers for an axis of n."""
    axis, last = axis_of(x, axis), len(x.shape) - 1
    n = x.shape[axis]
    triangle = ops.diag_mask_zero(ops.repeat(x.graph.number(1), shape=(n, n)))
    return moved(ops.mul_mat(triangle, moved(x, axis, last).contiguous()), last, axis)
