"""A tensor inside somebody's file, found and checked but not read: what every reader of checkpoints returns.

Files of checkpoints differ in their headers only; behind them a tensor is numbers at an offset. So the readers
(torch.py, safetensors.py, gguf.py, the sources) check names, sizes and offsets and return `Stored`, and
values are read here, by `convert`, one tensor at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.core import encoding
from ggmlgraph.errors import FormatError, UnsupportedError
from ggmlgraph.table.dialect import TYPES as ELEMENTS

MAX_RANK = 8
MAX_ELEMENTS = 1 << 48
CHUNK_NBYTES = 1 << 20
BF16 = "bf16"  # numpy has no such type: read as the upper halves of float32
DTYPES = {
    "f32": "<f4", "f16": "<f2", BF16: "<u2", "f64": "<f8", "bool": "u1",
    "i8": "i1", "u8": "u1", "i16": "<i2", "u16": "<u2", "i32": "<i4", "u32": "<u4", "i64": "<i8", "u64": "<u8",
}  # fmt: skip
FLOATS = ("f32", "f16", BF16, "f64")
QUANTISED = tuple(n.lower() for n, element in ELEMENTS.items() if element.decodes and element.block > 1)  # last axis


def itemsize(dtype: str) -> int:
    """Bytes of one element."""
    return np.dtype(DTYPES[dtype]).itemsize


def nbytes(dtype: str, n: int) -> int:
    """Bytes of n elements."""
    return encoding.nbytes(dtype, n) if dtype in QUANTISED else n * itemsize(dtype)


@dataclass(frozen=True)
class Stored:
    """A tensor of a file. Its reader has checked that the file has the bytes that shape and strides reach."""

    path: Path
    offset: int  # of the first element, bytes
    dtype: str  # a key of DTYPES, or of QUANTISED: then its rows are whole blocks
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None  # elements; None: row-major without gaps

    def describe(self) -> str:
        """ "f16[512,64]"."""
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    def rows(self, begin: int, end: int) -> Stored:
        """Some rows of it."""
        strides = dense_strides(self.shape) if self.strides is None else self.strides
        offset = self.offset + begin * strides[0] * itemsize(self.dtype)
        return replace(self, offset=offset, shape=(end - begin, *self.shape[1:]))

    def stacked(self) -> Stored:
        """The same elements with an axis of size 1 before the others."""
        return replace(self, shape=(1, *self.shape), strides=self.strides and (1, *self.strides))

    def transposed(self) -> Stored:
        """The same elements with their axes reversed."""
        if self.dtype in QUANTISED:
            raise UnsupportedError(f"{self.path}: a tensor of {self.dtype} that would have to be transposed")
        strides = dense_strides(self.shape) if self.strides is None else self.strides
        return replace(self, shape=self.shape[::-1], strides=strides[::-1])

    def part(self, i: int) -> Stored:
        """The i-th of a row-major tensor's parts along its first axis."""
        return replace(
            self, offset=self.offset + i * nbytes(self.dtype, math.prod(self.shape[1:])), shape=self.shape[1:]
        )

    def half(self, which: int) -> Stored:
        """The upper or lower half of each matrix of (n, rows, columns). Raises FormatError if there are no halves."""
        if len(self.shape) != 3 or self.shape[1] % 2 or self.strides is not None or self.dtype in QUANTISED:
            raise FormatError(f"{self.path}: {self.describe()} where matrices of two halves should be")
        n, rows, columns = self.shape
        begin = which * (rows // 2) * columns * itemsize(self.dtype)
        strides = (rows * columns, columns, 1)
        return replace(self, offset=self.offset + begin, shape=(n, rows // 2, columns), strides=strides)

    def blocks(self, rows: NDArray[np.int64] | None = None) -> Iterator[NDArray[np.uint8]]:
        """The bytes of a quantised tensor, otherwise as `chunks`."""
        raw = replace(self, dtype="u8", shape=(*self.shape[:-1], encoding.nbytes(self.dtype, self.shape[-1])))
        for part in raw._flat_parts(encoding.element(self.dtype).nbytes) if rows is None else raw._row_parts(rows):
            if not np.isfinite(encoding.decode(self.dtype, part)).all():
                raise FormatError(f"{self.path}: a weight that is not finite", offset=self.offset)
            yield part

    def read(self) -> NDArray[Any]:
        """The values as they are stored (bf16: uint16), in memory of their own."""
        if self.strides is None:
            return self._span(math.prod(self.shape)).reshape(self.shape)
        flat = self._span(span(self.shape, self.strides))
        steps = [stride * flat.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)

    def _span(self, n: int) -> NDArray[Any]:
        flat = np.empty(n, DTYPES[self.dtype])
        with self.path.open("rb") as file:
            file.seek(self.offset)
            read_into(file, flat)
        return flat

    def chunks(self, rows: NDArray[np.int64] | None = None) -> Iterator[NDArray[np.float32]]:
        """The values as float32, flat and row-major, about a megabyte at a time; `rows`: which rows, in which order.

        Holds one whole tensor in memory, as stored, if rows are picked or strides are not those of a dense tensor.
        Raises FormatError if a value is not finite, UnsupportedError if the tensor holds no floats.
        """
        if self.dtype in QUANTISED:
            yield from (encoding.decode(self.dtype, part) for part in self.blocks(rows))
            return
        if self.dtype not in FLOATS:
            raise UnsupportedError(f"{self.path}: a tensor of {self.dtype} where weights should be")
        parts = self._flat_parts() if rows is None and self.strides is None else self._row_parts(rows)
        for part in parts:
            values = to_float32(part, self.dtype)
            if not np.isfinite(values).all():
                raise FormatError(f"{self.path}: a weight that is not finite (or beyond float32)", offset=self.offset)
            yield values

    def _flat_parts(self, unit: int = 1) -> Iterator[NDArray[Any]]:
        """unit: elements that stay together."""
        at_a_time = CHUNK_NBYTES // itemsize(self.dtype) // unit * unit
        left = math.prod(self.shape)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while left:
                part = np.empty(min(left, at_a_time), DTYPES[self.dtype])
                read_into(file, part)
                left -= part.size
                yield part

    def _row_parts(self, rows: NDArray[np.int64] | None) -> Iterator[NDArray[Any]]:
        array = self.read()
        rows = np.arange(len(array)) if rows is None else rows
        at_a_time = max(1, CHUNK_NBYTES * len(array) // max(1, array.nbytes))
        for start in range(0, len(rows), at_a_time):
            yield array[rows[start : start + at_a_time]].reshape(-1)


@dataclass(frozen=True)
class Joined:
    """Tensors of one type that are one, split along axis 0 or 1."""

    parts: tuple[Stored, ...]
    axis: int

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = list(self.parts[0].shape)
        sizes[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return tuple(sizes)

    def chunks(self, rows: NDArray[np.int64] | None = None) -> Iterator[NDArray[np.float32]]:
        """As Stored.chunks, of all parts; in the order in which they lie."""
        if rows is not None:
            raise UnsupportedError(f"{self.parts[0].path}: a tensor in several files whose rows lie in another order")
        if self.axis == 0:
            for part in self.parts:
                yield from part.chunks()
            return
        n_rows = max(1, CHUNK_NBYTES // (4 * self.shape[1]))
        for start in range(0, self.shape[0], n_rows):
            blocks = [part.rows(start, min(start + n_rows, self.shape[0])) for part in self.parts]
            yield np.concatenate([np.concatenate(list(b.chunks())).reshape(b.shape) for b in blocks], 1).reshape(-1)


@dataclass(frozen=True)
class Scaled:
    """Whole numbers of 8 bits, of which each group, in row-major order, is multiplied by a number of its own."""

    numbers: Stored
    factors: Stored  # float32, one for each group

    dtype = "f32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.shape

    def chunks(self, rows: NDArray[np.int64] | None = None) -> Iterator[NDArray[np.float32]]:
        """As Stored.chunks, in the order in which they lie."""
        if rows is not None:
            raise UnsupportedError(f"{self.numbers.path}: a quantised tensor whose rows lie in another order")
        factors, at = np.concatenate(list(self.factors.chunks())), 0
        n_group = math.prod(self.shape) // len(factors)
        for part in self.numbers._flat_parts(n_group):
            groups = part.reshape(-1, n_group)
            yield (groups * factors[at : at + len(groups), None]).reshape(-1)
            at += len(groups)


Weight = Stored | Joined | Scaled  # a tensor, however its file has it


def joined(name: str, parts: Sequence[Stored], axis: int) -> Joined:
    """Parts of one tensor. Raises FormatError if they do not fit together."""
    sizes = {(part.dtype, part.shape[:axis], part.shape[axis + 1 :]) for part in parts if len(part.shape) > axis}
    if len(sizes) != 1 or any(len(part.shape) <= axis for part in parts):
        raise FormatError(
            f"{parts[0].path}: the parts of {name!r} do not fit: {', '.join(p.describe() for p in parts)}"
        )
    return Joined(tuple(parts), axis)


def same_values(a: Weight, b: Weight) -> bool:
    """Whether two tensors are equal, in shape and values. Reads both, unless they are one."""
    if a == b or a.shape != b.shape:
        return a == b
    if isinstance(a, Stored) and isinstance(b, Stored) and a.dtype == b.dtype and a.strides is b.strides is None:
        if a.dtype in QUANTISED:
            return all(np.array_equal(x, y) for x, y in zip(a.blocks(), b.blocks(), strict=True))
        return all(np.array_equal(x, y) for x, y in zip(a._flat_parts(), b._flat_parts(), strict=True))
    return np.array_equal(np.concatenate(list(a.chunks())), np.concatenate(list(b.chunks())))


def to_float32(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Stored values as float32; exact but for f64, which is rounded."""
    if dtype == BF16:
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore"):  # becomes infinite, which the caller refuses
        return values.astype(np.float32, copy=False)


def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first of a tensor to the end of its last."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a row-major tensor without gaps, in elements."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def check_shape(path: Path, name: str, shape: tuple[int, ...]) -> None:
    """Raise FormatError unless a shape from a file is one we can count with."""
    if len(shape) > MAX_RANK or any(not 0 <= n < MAX_ELEMENTS for n in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise FormatError(f"{path}: {name!r} has the impossible shape {list(shape)[: MAX_RANK + 1]}")


def read_into(file: BinaryIO, array: NDArray[Any]) -> None:
    """Fill an array from a file. Raises FormatError if the file ends before."""
    view = memoryview(array.view(np.uint8))  # type: ignore[arg-type]
    got = 0
    while got < len(view):
        n = file.readinto(view[got:])  # type: ignore[attr-defined]
        if not n:
            raise FormatError(f"{file.name}: the file ends inside a tensor")
        got += n
