"""`scan`: a function applied step by step along the first axis, as jax.lax.scan. Used by models, recurrent ones.

The loop is unrolled: a ggml file has no loops, so each step's nodes are in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ggmlgraph.errors import ShapeError, UsageError
from ggmlgraph.errors import here as place
from ggmlgraph.tracing.calls import shown
from ggmlgraph.tracing.layout import stack
from ggmlgraph.tracing.tensor import Tensor

C = TypeVar("C")  # a tensor or a tuple of tensors, as X and Y
X = TypeVar("X")
Y = TypeVar("Y")
MAX_STEPS = 1024


def scan(f: Callable[[C, X], tuple[C, Y]], init: C, xs: X) -> tuple[C, Y]:
    """From carry = init, for each x of xs along the first axis, carry, y = f(carry, x) -> the last carry, stacked ys.

    init, xs: a tensor or a tuple of tensors, xs of one length; f gets them in that form, x without the first axis, and
    gives a carry of the form and shapes that it got, and a y that is a tensor, a tuple of tensors or None. The loop is
    unrolled, for a ggml file has no loops, so it takes at most 1024 steps, and a graph whose length follows
    from batch or ctx keeps its size. All it costs grows with the number of steps: 1024 of a GRU of 128 on 16 rows are
    22,544 nodes and 8 MiB in the file, traced and written in 2.4 s, loaded and planned in 0.5 s for 122 MiB, and a
    training step takes 0.14 s of one processor's time.

    Raises UsageError for more steps, or where f gives something else; ShapeError where a carry changes its shape.
    """
    here = _place(xs)
    carry: Any = init
    ys = []
    for i in range(_length(xs, here)):
        given: Any = f(carry, _at(xs, i))
        if not isinstance(given, tuple) or len(given) != 2:
            raise UsageError(f"{here}: scan: f gives {given!r:.80}, not a carry and a y")
        _check_carry(carry, given[0], here)
        carry, y = given
        ys.append(y)
    return carry, _stacked(ys, here)


def _place(xs: Any) -> str:
    """Where scan was called. Raises TypeError for what is no tensor."""
    where = place()
    given = _all(xs)
    if not given:
        raise TypeError(f"{where}: scan: xs is an empty tuple")
    for x in given:
        if not isinstance(x, Tensor):
            raise TypeError(f"{where}: scan: xs takes a tensor or a tuple of tensors, got {shown(x)}")
    return where


def _all(tensors: Any) -> tuple[Any, ...]:
    return tensors if isinstance(tensors, tuple) else (tensors,)


def _at(xs: Any, i: int) -> Any:
    return tuple(x[i] for x in xs) if isinstance(xs, tuple) else xs[i]


def _length(xs: Any, here: str) -> int:
    lengths = {int(x.shape[0]) for x in _all(xs)}
    if len(lengths) != 1:
        raise ShapeError(f"{here}: scan: xs differ in their first axis: {', '.join(map(repr, _all(xs)))}")
    (n,) = lengths
    if n > MAX_STEPS:
        why = f"each is written into the file, which has no loops, so at most {MAX_STEPS} are"
        raise UsageError(f"{here}: scan: {n} steps; {why}; cut the sequence, or compute several positions a step")
    return n


def _check_carry(before: Any, after: Any, here: str) -> None:
    """Raise unless a step's carry is of the form of the one before."""
    form = (type(before), len(_all(before)))
    if not isinstance(after, Tensor | tuple) or (type(after), len(_all(after))) != form:
        raise UsageError(f"{here}: scan: f gives the carry {after!r:.80}, it got {before!r:.80}")
    for one, other in zip(_all(before), _all(after), strict=True):
        if not isinstance(other, Tensor) or one.shape != other.shape:
            raise ShapeError(f"{here}: scan: f gives the carry {other!r:.80}, it got {one!r}")


def _stacked(ys: list[Any], here: str) -> Any:
    if all(y is None for y in ys):
        return None
    forms = {(type(y), len(y) if isinstance(y, tuple) else 1) for y in ys}
    if len(forms) != 1 or not all(isinstance(y, Tensor | tuple) for y in ys):
        raise UsageError(f"{here}: scan: f gives ys of different forms, such as {ys[0]!r:.80}")
    columns = [stack(list(column)) for column in zip(*(_all(y) for y in ys), strict=True)]
    return tuple(columns) if isinstance(ys[0], tuple) else columns[0]
