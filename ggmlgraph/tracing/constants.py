"""Values that a model brings along: constants, of which the file holds equal ones once, and numbers in a row.

Used by models. A call has no tensor to say which graph it is for, so these ask for the one being traced.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggmlgraph.errors import ShapeError, UsageError, here
from ggmlgraph.graphfile.dim import Dim
from ggmlgraph.table import ops
from ggmlgraph.table.op import TABLE
from ggmlgraph.tracing.arithmetic import is_number
from ggmlgraph.tracing.tensor import Tensor
from ggmlgraph.tracing.tracer import being_traced

MAX_EXACT = 1 << 24  # whole numbers beyond it are not all float32


def constant(values: ArrayLike) -> Tensor:
    """A tensor of these values, which the file holds once, however often equal ones are asked for.

    Whole numbers become int32, all else float32, True and False 1 and 0; a single number has the shape (1,). Neither
    trained nor fed. Raises UsageError for what is no numbers or none, int32 cannot hold, or has more than 4 axes.
    """
    graph = being_traced("constant")
    return graph.array(_as_stored(values))


def _as_stored(values: Any) -> NDArray[Any]:
    where = f"{here()}: constant: "
    if isinstance(values, Tensor):
        raise UsageError(f"{where}{values!r} is a tensor already")
    try:
        array = np.atleast_1d(np.asarray(values))
    except ValueError as error:
        raise UsageError(f"{where}{values!r:.80} is no array: {error}") from None
    if array.dtype.kind not in "biuf" or not array.size or array.ndim > 4:
        raise UsageError(f"{where}{array.dtype} of shape {array.shape} is no 1 to 4 axes of numbers")
    if array.dtype.kind not in "iu":
        return np.ascontiguousarray(array, np.float32)
    if array.min() < -(2**31) or array.max() >= 2**31:
        raise UsageError(f"{where}numbers from {array.min()} to {array.max()} are not all int32")
    return np.ascontiguousarray(array, np.int32)


def arange(start: float, stop: float | None = None, step: float = 1, dtype: str = "f32") -> Tensor:
    """start, start + step, ... while below stop, or above it if step is below 0: numpy.arange; arange(n): 0 to n - 1.

    Sizes such as x.shape[1] may be among them, and the file follows. dtype: "f32", or "i32", to choose rows by.
    Raises ShapeError for no numbers, UsageError for numbers of int32 that are none.
    """
    graph = being_traced("arange")
    start, stop = (0, start) if stop is None else (start, stop)
    where = f"{graph.here()}: arange({start!r:.40}, {stop!r:.40}, {step!r:.40}): "
    if not all(is_number(x) and math.isfinite(x) for x in (start, stop, step)) or not step:
        raise UsageError(f"{where}not finite numbers and a step that is not 0")
    if dtype not in ("f32", "i32"):
        raise UsageError(f"{where}dtype is {dtype!r:.40}, not 'f32' or 'i32'")
    n = _count(start, stop, step)
    if not 1 <= n <= MAX_EXACT:
        raise ShapeError(f"{where}{int(n)} numbers, not 1 to {MAX_EXACT}")
    whole = all(isinstance(x, int) for x in (start, stop, step))
    if dtype == "f32":
        return _floats(start, n, step, whole=whole)
    if not whole:
        raise UsageError(f"{where}int32 are whole numbers")
    if not isinstance(start, Dim) and not isinstance(n, Dim):
        return graph.array(np.arange(start, stop, step, dtype=np.int32))
    first, falls = (n - 1, True) if step == -1 else (0, False)
    if abs(step) == 1 and start == first and getattr(start, "expr", "") == getattr(first, "expr", ""):
        return _places(n, falls=falls)
    what = "int32 that depend on batch or ctx are 0 to n - 1 alone, or n - 1 to 0; ggml computes no int32"
    raise UsageError(f"{where}{what}")


def _count(start: Any, stop: Any, step: Any) -> Any:
    """How many numbers there are: as numpy counts, and by an expression where sizes are among them."""
    if not any(isinstance(x, Dim) for x in (start, stop)):
        return math.ceil((stop - start) / step)
    forwards, by = (stop - start, step) if step > 0 else (start - stop, -step)
    if not isinstance(step, int) or not isinstance(forwards, int):
        raise UsageError(f"{here()}: arange: between sizes that depend on batch or ctx all are whole numbers")
    return forwards if by == 1 else (forwards + (by - 1)) // by


def _floats(start: Any, n: int, step: Any, *, whole: bool) -> Tensor:
    """ggml's ARANGE. It counts in float32, so what is not whole, or follows sizes, is made of 0, 1, 2, ..."""
    graph = being_traced("arange")
    if whole and not isinstance(n, Dim) and not isinstance(start, Dim) and max(abs(start), abs(n * step)) <= MAX_EXACT:
        return graph.add(TABLE["arange"], [], {"start": start, "stop": start + n * step, "step": step})
    if isinstance(n, Dim) and n.expr == "ctx":
        row = graph.input("positions_f32", (n,), "f32", feed="positions_f32")
    else:
        graph.expect(n)
        row = graph.add(TABLE["arange"], [], {"start": 0, "stop": n, "step": 1})
    row = row if step == 1 else row * step
    return row if start == 0 and not isinstance(start, Dim) else row + start


def _places(n: int, *, falls: bool) -> Tensor:
    """0 to n - 1 in int32, or from n - 1 down: where numbers of a row lie when sorted; of ctx what positions are."""
    if isinstance(n, Dim) and n.expr == "ctx" and not falls:
        return being_traced("arange").input("positions", (n,), "i32", feed="positions")
    return ops.argsort(_floats(0, n, 1, whole=True), int(falls))


def as_floats(x: Tensor, n: int | None) -> Tensor:
    """See Tensor.float."""
    if x.dtype == "f32":
        return x
    if x.dtype != "i32":
        raise UsageError(f"{x.graph.here()}: float: {x!r} is no int32 tensor")
    if n is None:
        what = "ggml converts no int32; ids.float(n) does for ids of 0 to n - 1"
        raise UsageError(f"{x.graph.here()}: float: {x!r}: {what}")
    table = arange(n).reshape(n, 1)
    return ops.get_rows(table, x.contiguous().reshape(-1)).reshape(*x.shape)
