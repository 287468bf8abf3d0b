"""Choosing between elements by a mask, and by what is larger. Used by models."""

from __future__ import annotations

import math
from typing import Any

from ggmlgraph.errors import here
from ggmlgraph.table import ops
from ggmlgraph.tracing import arithmetic
from ggmlgraph.tracing.tensor import Tensor


def where(mask: Tensor, a: Any, b: Any) -> Tensor:
    """a where a mask is 1, b where it is 0, exactly; a and b are tensors or numbers, which may be infinite.

    It is mask * a + (1 - mask) * b: an infinity or NaN in a tensor makes NaN where it is not chosen too. An infinite
    number does not: there the logarithm of the mask is added to the other operand or taken away.
    """
    if arithmetic.is_number(b) and math.isinf(b):
        return _or_infinite(mask, a, b)
    if arithmetic.is_number(a) and math.isinf(a):
        return _or_infinite(arithmetic.logical_not(mask), b, a)
    return _part(mask, a) + _part(arithmetic.logical_not(mask), b)


def _or_infinite(mask: Tensor, a: Any, infinity: float) -> Tensor:
    """a where the mask is 1, else the infinity."""
    masked = ops.log(mask)  # 0 or -inf
    return arithmetic.add(masked if infinity < 0 else ops.neg(masked), a)


def _part(mask: Tensor, a: Any) -> Tensor:
    return mask * a if arithmetic.is_number(a) else arithmetic.operand(mask, a, "where") * mask


def maximum(a: Any, b: Any) -> Tensor:
    """The larger of each two elements, exactly; of tensors, or of a tensor and a number.

    Where they are equal, the gradient goes to b, and to the tensor where the other is a number. Of tensors see `where`
    for infinities.
    """
    if arithmetic.is_number(b):
        return clamp(_tensor(a, b), float(b), math.inf)
    if arithmetic.is_number(a):
        return maximum(_tensor(b, a), a)
    return where(a > b, a, b)


def minimum(a: Any, b: Any) -> Tensor:
    """The smaller of each two elements, as `maximum`."""
    if arithmetic.is_number(b):
        return clamp(_tensor(a, b), -math.inf, float(b))
    if arithmetic.is_number(a):
        return minimum(_tensor(b, a), a)
    return where(a < b, a, b)


def _tensor(value: Any, other: Any) -> Tensor:
    """The value. Raises TypeError where neither of the two is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{here()}: neither {other!r:.40} nor {value!r:.40} is a tensor")
    return value


def clamp(x: Tensor, min: float, max: float) -> Tensor:
    """The nearest number in min..max, each of which may be infinite: torch.clamp, numpy.clip.

    It is ggml's CLAMP of one row: with several threads, ggml of 2024 leaves out all rows but one in so many.
    """
    return ops.clamp(x.reshape(-1), min, max).reshape(*x.shape)


def tril(x: Tensor, k: int = 0) -> Tensor:
    """x with zeros above the k-th diagonal of its last two axes, as numpy.tril."""
    if k >= 0:
        return ops.diag_mask_zero(x.contiguous(), k)
    return triu(x.T, -k).T


def triu(x: Tensor, k: int = 0) -> Tensor:
    """x with zeros below the k-th diagonal of its last two axes, as numpy.triu."""
    if k <= 0:
        return ops.diag_mask_zero(x.T.cont(), -k).T
    ones = ops.repeat(x.graph.number(1), shape=x.shape[-2:])
    return x * arithmetic.logical_not(ops.diag_mask_zero(ones, k - 1))
