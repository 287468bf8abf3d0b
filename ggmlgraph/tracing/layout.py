"""Where elements lie: axes added, dropped, swapped, joined and split, tensors put beside one another.

Axes are counted as in numpy, from the end where the number is below 0. Used by models, and by indexing and reductions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

from ggmlgraph.errors import ShapeError, here
from ggmlgraph.table import ops
from ggmlgraph.tracing.arithmetic import is_one
from ggmlgraph.tracing.calls import shown
from ggmlgraph.tracing.tensor import Tensor


def axis_of(x: Tensor, axis: Any, n_axes: int | None = None) -> int:
    """An axis counted from the front. Raises ShapeError if there is no such axis."""
    n = len(x.shape) if n_axes is None else n_axes
    if not isinstance(axis, int) or not -n <= axis < n:
        raise ShapeError(f"{x.graph.here()}: axis {axis!r:.80} of {x!r}, which has axes -{n} to {n - 1}")
    return int(axis) % n


def moved(x: Tensor, axis: int, to: int) -> Tensor:
    """x with an axis at another place, the order of the others kept."""
    order = [i for i in range(len(x.shape)) if i != axis]
    order.insert(to, axis)
    return x if order == sorted(order) else x.permute(*order)


def swapaxes(x: Tensor, one: int, other: int) -> Tensor:
    """x with two axes swapped; no copy."""
    order = list(range(len(x.shape)))
    i, j = axis_of(x, one), axis_of(x, other)
    order[i], order[j] = j, i
    return x if i == j else x.permute(*order)


def flatten(x: Tensor, start: int = 0, end: int = -1) -> Tensor:
    """x with the axes from `start` to `end` joined into one."""
    i, j = axis_of(x, start), axis_of(x, end)
    return x.reshape(*x.shape[:i], prod(x.shape[i : j + 1]), *x.shape[j + 1 :])


def squeeze(x: Tensor, axis: int | None = None) -> Tensor:
    """x without an axis of size 1, or without any. Raises ShapeError for an axis of another size."""
    dropped = [i for i, n in enumerate(x.shape) if is_one(n)] if axis is None else [axis_of(x, axis)]
    if any(not is_one(x.shape[i]) for i in dropped):
        raise ShapeError(f"{x.graph.here()}: squeeze: axis {axis} of {x!r} has not the size 1")
    return x.reshape(*([n for i, n in enumerate(x.shape) if i not in dropped] or [1]))


def unsqueeze(x: Tensor, axis: int) -> Tensor:
    """x with a new axis of size 1 at that place of the result."""
    at = axis_of(x, axis, len(x.shape) + 1)
    return x.reshape(*x.shape[:at], 1, *x.shape[at:])


def concat(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors one after another along an axis; their other sizes are equal.

    A file of dialect v1 cannot have it for the last axis: it raises UnsupportedError when it is saved.
    """
    tensors = _tensors(tensors, "concat")
    first = tensors[0]
    axis = axis_of(first, axis)
    for other in tensors[1:]:
        shapes = [(*x.shape[:axis], *x.shape[axis + 1 :]) for x in (first, other)]
        if shapes[0] != shapes[1] or len(first.shape) != len(other.shape):
            raise ShapeError(f"{first.graph.here()}: concat along axis {axis}: {first!r} and {other!r}")
    before, after = first.shape[:axis], first.shape[axis + 1 :]
    if not after:
        return _joined(tensors, axis, 0)
    blocks = [x.reshape(prod(before), x.shape[axis], 1, prod(after)) for x in tensors]
    joined = _joined(blocks, 1, 2)  # the dimension that every ggml has it for
    return joined.reshape(*before, joined.shape[1], *after)


def _joined(tensors: Sequence[Tensor], axis: int, dim: int) -> Tensor:
    """By halves, so that of n tensors each is copied log n times."""
    if len(tensors) == 1:
        return tensors[0]
    half = (len(tensors) + 1) // 2
    one, other = (_joined(part, axis, dim) for part in (tensors[:half], tensors[half:]))
    one.graph.expect(one.shape[axis] + other.shape[axis])
    return ops.concat(one, other, dim)


def stack(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors of one shape along a new axis."""
    tensors = _tensors(tensors, "stack")
    return concat([unsqueeze(x, axis) for x in tensors], axis)


def split(x: Tensor, parts: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """x cut along an axis, as numpy.split: into a number of equal parts, or at these places. Views."""
    axis = axis_of(x, axis)
    n = x.shape[axis]
    if isinstance(parts, int):
        if parts < 1 or n % parts:
            raise ShapeError(f"{x.graph.here()}: split: axis {axis} of {x!r} in {parts} equal parts")
        parts = [i * (n // parts) for i in range(1, parts)]
    if not isinstance(parts, Sequence) or not all(isinstance(place, int) for place in parts):
        raise TypeError(f"{here()}: split: {parts!r:.80} is no number of parts, and no list of places")
    bounds = [0, *parts, n]
    key = (slice(None),) * axis
    return [x[(*key, slice(begin, end))] for begin, end in pairwise(bounds)]


def pad(x: Tensor, widths: int | tuple[int, int] | Sequence[tuple[int, int]]) -> Tensor:
    """x in zeros, as numpy.pad: (before, after) of each axis, or of all of them, or one number for both."""
    pairs = _widths(x, widths)
    y = x
    for axis, (before, _) in enumerate(pairs):
        if not (isinstance(before, int) and is_one(before + 1)):
            shape = (*y.shape[:axis], before, *y.shape[axis + 1 :])
            y = concat([ops.repeat(x.graph.number(0), shape=shape), y], axis)
    shape = tuple(n + after for n, (_, after) in zip(y.shape, pairs, strict=True))
    return y if shape == y.shape else ops.pad(y.contiguous(), shape=shape)


def _widths(x: Tensor, widths: Any) -> list[tuple[int, int]]:
    if isinstance(widths, int):
        widths = (widths, widths)
    given = list(widths) if isinstance(widths, Sequence) else []
    if len(given) == 2 and all(isinstance(n, int) for n in given):
        given = [tuple(given)] * len(x.shape)
    pairs = all(isinstance(pair, Sequence) and len(pair) == 2 for pair in given)
    if len(given) != len(x.shape) or not pairs or any(not isinstance(n, int) or n < 0 for pair in given for n in pair):
        raise ShapeError(f"{x.graph.here()}: pad: {widths!r:.80} are no widths (before, after) of the axes of {x!r}")
    return given


def _tensors(tensors: Any, what: str) -> list[Tensor]:
    """A sequence of tensors. Raises TypeError for anything else."""
    given = list(tensors) if isinstance(tensors, list | tuple) else [tensors]
    first = next((x for x in given if isinstance(x, Tensor)), None)
    if first is None or not isinstance(tensors, list | tuple):
        raise TypeError(f"{here()}: {what} takes a list of tensors, as {what}([a, b], axis=0), not {tensors!r:.80}")
    for x in given:
        if not isinstance(x, Tensor):
            raise TypeError(f"{here()}: {what} takes tensors, got {shown(x)} beside {first!r}")
    return given
