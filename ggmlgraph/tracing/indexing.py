"""Indexing as numpy has it: whole numbers, slices of any step, None and `...` in brackets; gather and flip by ids.

A slice is a view, but of the last axis ggml wants neighbours: a step or a place there costs a copy, as does dropping
an axis. Used by `Tensor.__getitem__`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ggmlgraph.errors import ShapeError
from ggmlgraph.graphfile.dim import Dim
from ggmlgraph.table import ops
from ggmlgraph.table.op import TABLE
from ggmlgraph.tracing.constants import arange
from ggmlgraph.tracing.layout import axis_of, moved
from ggmlgraph.tracing.tensor import Tensor


@dataclass(frozen=True)
class _Part:
    """What is taken of one axis: `size` elements from `start` on, `step` apart; backwards, or one that drops it."""

    n: int
    start: int
    size: int
    step: int = 1
    backwards: bool = False
    drops: bool = False
    is_whole: bool = False  # written as `:`; any other slice is a view, whatever its bounds are at these sizes


def index(x: Tensor, key: Any) -> Tensor:
    """x[key]. Raises ShapeError for what is no basic index or lies outside."""
    keys = key if isinstance(key, tuple) else (key,)
    for item in keys:
        if isinstance(item, Tensor):
            raise ShapeError(f"{x.graph.here()}: {x!r} is indexed by the tensor {item!r}; gg.gather(x, ids, axis) does")
    n_axes = sum(item is not None and item is not Ellipsis for item in keys)
    n_dots = sum(item is Ellipsis for item in keys)
    if n_axes > len(x.shape) or n_dots > 1:
        raise ShapeError(f"{x.graph.here()}: {len(keys)} indices, {n_dots} of them `...`, for {x!r}")
    dots = [slice(None)] * (len(x.shape) - n_axes)
    at = next((i for i, item in enumerate(keys) if item is Ellipsis), len(keys))
    keys = (*keys[:at], *dots, *keys[at + 1 :])
    sizes = iter(x.shape)
    parts = [None if item is None else _part(x, item, next(sizes)) for item in keys]
    y = _taken(x, [part for part in parts if part is not None])
    shape = tuple(1 if part is None else part.size for part in parts if part is None or not part.drops)
    if any(part is None or part.drops for part in parts):
        y = y.reshape(*(shape or (1,)))
    for axis, part in enumerate(part for part in parts if part is None or not part.drops):
        y = flip(y, axis) if part is not None and part.backwards else y
    return y


def _part(x: Tensor, item: Any, n: int) -> _Part:
    here = x.graph.here()
    if isinstance(item, int | np.integer) and not isinstance(item, bool):
        start = _place(int(item) if isinstance(item, np.integer) else item, n, 0)
        if not 0 <= start < n:
            raise ShapeError(f"{here}: index {item} of an axis of size {n} of {x!r}")
        return _Part(n, start, 1, drops=True)
    if item == slice(None):
        return _Part(n, 0, n, is_whole=True)
    step = item.step if isinstance(item, slice) and item.step is not None else 1
    if not isinstance(item, slice) or not isinstance(step, int) or isinstance(step, Dim) or step == 0:
        raise ShapeError(f"{here}: {x!r} takes whole numbers, slices, None and ... as indices, not {item!r:.80}")
    if step > 0:
        start, stop = _place(item.start, n, 0), _place(item.stop, n, n)
        if not 0 <= start < stop <= n:
            raise ShapeError(f"{here}: slice {start}:{stop} of an axis of size {n} of {x!r}")
        return _Part(n, start, (stop - start + step - 1) // step, step)
    last = _place(item.start, n, n - 1)
    before = -1 if item.stop is None else _place(item.stop, n, -1)
    if not -1 <= before < last < n:
        raise ShapeError(f"{here}: slice {last}:{before}:{step} of an axis of size {n} of {x!r}")
    size = (last - before - step - 1) // -step
    return _Part(n, last + (size - 1) * step, size, -step, backwards=True)


def _place(at: int | None, n: int, missing: int) -> int:
    """A bound of a slice; a number below 0 counts from the end, but not one that is so at these sizes alone."""
    if at is None:
        return missing
    return n + at if at < 0 and not isinstance(at, Dim) else at


def _taken(x: Tensor, parts: list[_Part]) -> Tensor:
    """The parts of x, of axes that are to be dropped one place."""
    if all(part.is_whole for part in parts):
        return x
    last = parts[-1]
    if last.step == 1 and not last.drops:
        return _view(x, parts)
    whole = _Part(last.n, 0, last.n, is_whole=True)
    y = _taken(x, [*parts[:-1], whole])
    column = y.reshape(prod(y.shape[:-1]), last.n, 1)
    rows, one = (_Part(n, 0, n, is_whole=True) for n in (column.shape[0], 1))
    return _view(column, [rows, last, one]).reshape(*y.shape[:-1], last.size)


def _view(x: Tensor, parts: list[_Part]) -> Tensor:
    graph = x.graph
    x = x.contiguous()
    all_strides = graph.strides(x.id)
    offset, stride = 0, all_strides[0][-1]  # of a contiguous tensor
    for part in reversed(parts):
        offset, stride = offset + part.start * stride, part.n * stride
    strides = []
    for of_four in all_strides:
        of_axes = of_four[4 - len(parts) :]
        stepped = [n * part.step for n, part in zip(of_axes, parts, strict=True)]
        strides.append((*of_four[: 4 - len(parts)], *stepped))
    shape = tuple(part.size for part in parts)
    return graph.add(TABLE["view"], [x], {"offset": offset, "shape": shape}, strides)


# ---------------------------------------------------------------- by ids


def gather(x: Tensor, ids: Tensor, axis: int = 0) -> Tensor:
    """The places `ids` of an axis of x, as numpy.take(x, ids, axis): ids int32, whose axes take the axis's place.

    The runtime checks every id against the axis's size. Raises ShapeError for more than 4 axes.
    """
    axis = axis_of(x, axis)
    if not isinstance(ids, Tensor) or ids.dtype != "i32":
        raise ShapeError(f"{x.graph.here()}: gather: ids must be an int32 tensor, got {ids!r:.80}")
    rest = (*x.shape[:axis], *x.shape[axis + 1 :])
    if len(rest) + len(ids.shape) > 4:
        raise ShapeError(f"{x.graph.here()}: gather: the result has more than 4 axes: x = {x!r}, ids = {ids!r}")
    table = moved(x, axis, 0).reshape(x.shape[axis], prod(rest))
    rows = ops.get_rows(table, ids.reshape(prod(ids.shape))).reshape(*ids.shape, *rest)
    if axis == 0:
        return rows
    n = len(ids.shape)
    order = (*range(n, n + axis), *range(n), *range(n + axis, n + len(rest)))
    return rows.permute(*order)


def flip(x: Tensor, axis: int) -> Tensor:
    """x with the elements of an axis in reverse order."""
    axis = axis_of(x, axis)
    return gather(x, arange(x.shape[axis] - 1, -1, -1, dtype="i32"), axis)
