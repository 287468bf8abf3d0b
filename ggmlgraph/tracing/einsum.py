"""`einsum`: sums of products by the letters of axes, as numpy.einsum, by ggml's matrix product. Used by models.

Axes are brought into the order (shared, kept, summed) and the product of every two operands is one mul_mat; without an
axis to sum over it is an elementwise product.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ggmlgraph.errors import ShapeError, UsageError, here
from ggmlgraph.table import ops
from ggmlgraph.tracing.arithmetic import with_rows
from ggmlgraph.tracing.tensor import Tensor

MAX_AXES = 4


def einsum(subscripts: str, *operands: Tensor) -> Tensor:
    """Sum of products over the axes whose letters the result has not: einsum("bqhd,bkhd->bhqk", q, k).

    Axes of one letter have one size; without "->" the result has the letters that stand once, in order. Several
    operands are multiplied from the left. Raises ShapeError for sizes that differ or more than 4 axes, UsageError for
    subscripts that are none, or say what no product does: a diagonal ("ii"), "...".
    """
    inputs, output = _parsed(subscripts, operands)
    where = f"{here()}: einsum({subscripts!r:.80}): "
    _check_sizes(inputs, operands, where)
    letters, x = inputs[0], operands[0]
    for i in range(1, len(operands)):
        later = {*output, *(c for rest in inputs[i + 1 :] for c in rest)}
        letters, x = _product(letters, x, inputs[i], operands[i], later, where)
    letters, x = _summed(letters, x, set(output))
    return _ordered(x, letters, output) if output else x.reshape(1)


def _parsed(subscripts: str, operands: Sequence[Tensor]) -> tuple[list[str], str]:
    """The letters of each operand, and of the result."""
    where = f"{here()}: einsum: "
    if not isinstance(subscripts, str) or not operands or not all(isinstance(x, Tensor) for x in operands):
        raise UsageError(f'{where}it is called as einsum("ij,jk->ik", x, y), of tensors; got {subscripts!r:.80}')
    where = f"{here()}: einsum({subscripts!r:.80}): "
    left, arrow, output = subscripts.replace(" ", "").partition("->")
    inputs = left.split(",")
    if "." in subscripts:
        raise UsageError(f"{where}no '...': give each axis a letter")
    if not all(c.isascii() and c.isalpha() for part in (*inputs, output) for c in part):
        raise UsageError(f"{where}axes are letters, operands separated by commas")
    if not arrow:
        output = "".join(sorted(c for c in set("".join(inputs)) if "".join(inputs).count(c) == 1))
    if len(inputs) != len(operands):
        raise UsageError(f"{where}letters of {len(inputs)} operands, but {len(operands)} are given")
    for part in (*inputs, output):
        if twice := next((c for c in part if part.count(c) > 1), None):
            raise UsageError(f"{where}{twice!r} is twice in {part!r}: ggml has no op for diagonals")
    if missing := next((c for c in output if not any(c in part for part in inputs)), None):
        raise UsageError(f"{where}the result's {missing!r} is in no operand")
    return inputs, output


def _check_sizes(inputs: Sequence[str], operands: Sequence[Tensor], where: str) -> None:
    sizes: dict[str, tuple[int, Tensor]] = {}
    for part, x in zip(inputs, operands, strict=True):
        if len(part) != len(x.shape):
            raise ShapeError(f"{where}{part!r} are {len(part)} letters for {x!r}")
        for c, n in zip(part, x.shape, strict=True):
            m, other = sizes.setdefault(c, (n, x))
            if n != m:
                raise ShapeError(f"{where}{c!r} is {m} and {n}: {other!r}, {x!r}")


def _summed(letters: str, x: Tensor, kept: set[str]) -> tuple[str, Tensor]:
    """x without the axes of letters that are not kept."""
    axes = tuple(i for i, c in enumerate(letters) if c not in kept)
    if not axes:
        return letters, x
    return "".join(c for c in letters if c in kept), x.sum(axis=axes)


def _ordered(x: Tensor, letters: str, order: str) -> Tensor:
    return x if letters == order else x.permute(*(letters.index(c) for c in order))


def _product(of_a: str, a: Tensor, of_b: str, b: Tensor, later: set[str], where: str) -> tuple[str, Tensor]:
    """The product of two operands, summed over what is not needed later, and its letters."""
    of_a, a = _summed(of_a, a, later | set(of_b))
    of_b, b = _summed(of_b, b, later | set(of_a))
    common = [c for c in of_a if c in of_b]
    shared, summed = ("".join(c for c in common if (c in later) == kept) for kept in (True, False))
    of_rows, of_columns = ("".join(c for c in part if c not in common) for part in (of_a, of_b))
    letters = shared + of_rows + of_columns
    if len(letters) > MAX_AXES:
        raise ShapeError(f"{where}a product of {a!r} and {b!r} has the axes {letters!r}, more than {MAX_AXES}")
    if not summed:
        return letters, _spread(a, of_a, letters) * _spread(b, of_b, letters)
    sizes = dict(zip(of_a + of_b, a.shape + b.shape, strict=True))
    x, w = (_matrices(y, part, shared, rest, summed) for y, part, rest in ((a, of_a, of_rows), (b, of_b, of_columns)))
    return letters, ops.mul_mat(w, x).reshape(*(sizes[c] for c in letters))


def _spread(x: Tensor, letters: str, order: str) -> Tensor:
    """x with its axes in an order, of size 1 where it has not the letter."""
    x = _ordered(x, letters, "".join(c for c in order if c in letters))
    sizes = iter(x.shape)
    shape = [next(sizes) if c in letters else 1 for c in order]
    return x if len(shape) == len(x.shape) else x.reshape(*shape)


def _matrices(x: Tensor, letters: str, shared: str, rest: str, summed: str) -> Tensor:
    """x as matrices (shared, rest, summed), several axes of a kind joined; no copy where memory allows."""
    x = with_rows(_ordered(x, letters, shared + rest + summed))
    sizes = list(x.shape)
    n, m = len(shared), len(shared) + len(rest)
    batch = sizes[:n] if n <= MAX_AXES - 2 else [prod(sizes[:n])]
    shape = [*batch, prod(sizes[n:m]), prod(sizes[m:])]
    return x if shape == sizes else x.reshape(*shape)
