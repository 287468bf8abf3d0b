"""Arithmetic of tensors as numpy has it: broadcasting both ways, numbers as operands, powers, comparisons.

ggml repeats a second operand into a first one. Where both operands, or the first alone, are to be repeated, these
functions swap them, turn a difference into a sum with the negative, or write ggml's `repeat`; the result's shape is
numpy's. A number that no op of ggml takes as one is a constant of one element. Used by the operators of `Tensor` and by
what is written over them.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

from ggmlgraph.errors import ShapeError
from ggmlgraph.graphfile.dim import Dim
from ggmlgraph.table import ops
from ggmlgraph.table.op import TABLE, Op
from ggmlgraph.tracing.calls import shown

if TYPE_CHECKING:
    from ggmlgraph.tracing.tensor import Tensor

BROADCASTING = ("add", "sub", "mul", "div")
# What a scalar of numpy on the left of an operator calls, whose own operators are ufuncs.
REFLECTED = {
    "add": "__radd__", "subtract": "__rsub__", "multiply": "__rmul__", "divide": "__rtruediv__", "power": "__rpow__",
    "less": "__gt__", "less_equal": "__ge__", "greater": "__lt__", "greater_equal": "__le__",
    "equal": "__eq__", "not_equal": "__ne__",
}  # fmt: skip


def is_number(value: Any) -> bool:
    """Whether a value is one number: of Python, of numpy, or a size."""
    return isinstance(value, Real) and getattr(value, "shape", ()) == ()


def operand(like: Tensor, value: Any, what: str) -> Tensor:
    """A value as an operand beside `like`: numbers become constants. Raises TypeError for what is no operand."""
    if is_number(value):
        return like.graph.number(value)
    if getattr(value, "graph", None) is not None:
        return value  # type: ignore[no-any-return]
    raise TypeError(f"{like.graph.here()}: {what}: {like!r} and {shown(value)}")


# ---------------------------------------------------------------- broadcasting


def is_one(n: int) -> bool:
    """Whether a size is 1 whatever batch and ctx are."""
    return n == 1 and not isinstance(n, Dim)


def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that numpy gives two operands of these shapes; None where sizes are neither equal nor 1."""
    rank = max(len(a), len(b))
    pairs = list(zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True))
    if any(n != m and not is_one(n) and not is_one(m) for n, m in pairs):
        return None
    return tuple(m if is_one(n) else n for n, m in pairs)


def repeated(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x in the shape that it is broadcast to."""
    return x if _fits(x, shape) else ops.repeat(x, shape=shape)


def with_rows(x: Tensor) -> Tensor:
    """x, copied if neighbours along its last axis are none in memory, where stock ggml's elementwise ops want them."""
    return x if x.graph.has_rows(x.id) else x.cont()


def fitted(op: Op, a: Tensor, b: Tensor) -> Tensor:
    """A broadcasting op of ggml on two tensors, broadcast as numpy would."""
    graph = a.graph
    if not hasattr(b, "graph"):
        raise TypeError(f"{graph.here()}: {op.name} takes tensors, got {b!r:.80}")
    a, b = with_rows(a), with_rows(b)
    shape = broadcast(a.shape, b.shape)
    if shape is None and not _tiles(a.shape, b.shape):
        what = "sizes are neither equal nor 1, from the last axis on"
        raise ShapeError(f"{graph.here()}: {op.name}: {what}: a = {a!r}, b = {b!r}")
    if shape is None:
        return graph.add(op, [a, b], {})  # which refuses to tile
    if op is TABLE["sub"] and not (_fits(a, shape) and _fits(b, shape)):
        op, b = TABLE["add"], ops.neg(b)  # a + -b is a - b to the bit; older ggml's SUB repeats nothing
    if op is not TABLE["div"] and not _fits(a, shape):
        a, b = b, a
    return graph.add(op, [repeated(a, shape), b], {})


def _tiles(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether ggml would tile b into a."""
    return len(b) <= len(a) and all(n % m == 0 for n, m in zip(reversed(a), reversed(b), strict=False))


def _fits(a: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a is of this shape, but for missing axes."""
    missing = (1,) * (len(shape) - len(a.shape)) + a.shape
    return all(is_one(n) == is_one(m) for n, m in zip(missing, shape, strict=True))


# ---------------------------------------------------------------- operators


def add(a: Tensor, b: Any) -> Tensor:
    """a + b."""
    return ops.add(a, operand(a, b, "+"))


def sub(a: Tensor, b: Any) -> Tensor:
    """a - b, b being a tensor or a number."""
    if is_number(b) and not isinstance(b, Dim):
        return ops.add(a, a.graph.number(-b))
    return ops.sub(a, operand(a, b, "-"))


def reflected_sub(b: Tensor, a: Any) -> Tensor:
    """a - b for an a that is no tensor."""
    return ops.add(ops.neg(b), operand(b, a, "-"))


def mul(a: Tensor, b: Any) -> Tensor:
    """a * b."""
    return ops.scale(a, float(b)) if is_number(b) else ops.mul(a, operand(a, b, "*"))


def div(a: Tensor, b: Any) -> Tensor:
    """a / b."""
    if not is_number(b):
        return ops.div(a, operand(a, b, "/"))
    if b == 0:
        raise ValueError(f"{a.graph.here()}: /: {a!r} is divided by 0")
    return ops.scale(a, float(1.0 / b))


def reflected_div(b: Tensor, a: Any) -> Tensor:
    """a / b for an a that is no tensor."""
    return ops.div(operand(b, a, "/"), b)


def power(x: Tensor, exponent: Any) -> Tensor:
    """x ** exponent. Whole numbers by products, 0.5 and -0.5 by roots, all else exp(exponent * log(x)), NaN below 0."""
    if not is_number(exponent):
        return ops.exp(ops.mul(ops.log(x), operand(x, exponent, "**")))
    p = float(exponent)
    if p == 0:
        return ops.repeat(x.graph.number(1), shape=x)
    if p < 0:
        return reflected_div(power(x, -p), 1)
    if p == 0.5:
        return ops.sqrt(x)
    return _whole_power(x, int(p)) if p.is_integer() else ops.exp(mul(ops.log(x), exponent))


def _whole_power(x: Tensor, p: int) -> Tensor:
    """x ** p for p >= 1, by squaring."""
    if p == 1:
        return x
    half = ops.sqr(_whole_power(x, p // 2))
    return ops.mul(half, x) if p % 2 else half


def reflected_power(x: Tensor, base: Any) -> Tensor:
    """base ** x for a number base above 0: exp(x * log(base))."""
    if not is_number(base) or not base > 0:
        raise ValueError(f"{x.graph.here()}: **: {base!r:.80} to the power of {x!r}; the base must be a number above 0")
    return ops.exp(mul(x, math.log(base)))


def matmul(a: Tensor, b: Any) -> Tensor:
    """a @ b: the last axis of a with the last but one of b, or the only one; what is in front broadcasts."""
    if is_number(b):
        raise TypeError(f"{a.graph.here()}: @: {a!r} and {b!r}; a number multiplies by *")
    b = operand(a, b, "@")
    if len(a.shape) == 1:
        y = matmul(a.reshape(1, *a.shape), b)
        return y if len(y.shape) == 1 else y.reshape(*y.shape[:-2], y.shape[-1])
    if len(b.shape) == 1:
        y = matmul(a, b.reshape(*b.shape, 1))
        return y.reshape(*y.shape[:-1])
    batch = broadcast(a.shape[:-2], b.shape[:-2])
    if a.shape[-1] != b.shape[-2] or batch is None:
        what = f"the {a.shape[-1]} columns of a are not the {b.shape[-2]} rows of b"
        what = "the axes in front do not broadcast" if batch is None else what
        raise ShapeError(f"{a.graph.here()}: @: {what}: a = {a!r}, b = {b!r}")
    a = with_rows(repeated(a, (*batch, *a.shape[-2:])))
    node = b.graph.nodes[b.id]
    columns = type(b)(b.graph, node.src[0]) if node.op is TABLE["transpose"] else b.T.cont()
    if any(not is_one(n) for n in b.shape[:-2]):
        columns = repeated(columns, (*batch, *columns.shape[-2:]))
    return ops.mul_mat(with_rows(columns), a)


# ---------------------------------------------------------------- masks: 1 where it is so, else 0; no gradient


def greater(a: Tensor, b: Any) -> Tensor:
    """1 where a > b, else 0."""
    return ops.step(_difference(a, b))


def less(a: Tensor, b: Any) -> Tensor:
    """1 where a < b, else 0."""
    return ops.step(_difference(b, a))


def greater_equal(a: Tensor, b: Any) -> Tensor:
    """1 where a >= b, else 0; 1 too where one of them is NaN."""
    return logical_not(less(a, b))


def less_equal(a: Tensor, b: Any) -> Tensor:
    """1 where a <= b, else 0; 1 too where one of them is NaN."""
    return logical_not(greater(a, b))


def equal(a: Tensor, b: Any) -> Tensor:
    """1 where a and b, tensors or a tensor and a number, are equal, else 0; 1 too where both are the same infinity or
    one is NaN."""
    if is_number(a):
        a, b = b, a
    return logical_not(ops.step(ops.abs(_difference(a, b))))


def logical_not(mask: Tensor) -> Tensor:
    """1 where a mask is 0, 0 where it is 1."""
    return reflected_sub(mask, 1)


def _difference(a: Any, b: Any) -> Tensor:
    """a - b, one of which may be a number."""
    if is_number(a):
        return ops.neg(b) if a == 0 else reflected_sub(b, a)
    if is_number(b):
        return a if b == 0 else sub(a, b)
    return (
        ops.sub(a, operand(a, b, "a comparison")) if hasattr(a, "graph") else ops.sub(operand(b, a, "a comparison"), b)
    )
