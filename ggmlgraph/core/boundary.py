"""The extension module, its errors as exceptions, and ggml's order of axes as numpy's.

Here and in `graphfile` alone dimensions lie as ggml has them (ne[0] fastest); everything above speaks numpy's order.
Used by the modules of this folder, which wrap what the C library has in objects that own their memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ggmlgraph._runtime import ffi as ffi
from ggmlgraph._runtime import lib as lib
from ggmlgraph.errors import (
    DataError,
    FormatError,
    GGError,
    LimitError,
    MemoryLimitError,
    ShapeError,
    UnsupportedError,
)
from ggmlgraph.table import ops as _ops  # noqa: F401  (fills the table)
from ggmlgraph.table.dialect import V2
from ggmlgraph.table.op import TABLE, Op

T = TypeVar("T")

N_DIMS = 4
TYPES = {name.lower(): number for name, number in V2.types.items()}
TYPE_NAMES = {number: name for name, number in TYPES.items()}
OP_NAMES = dict(enumerate(["none", *TABLE]))
OP_NUMBERS = {name: number for number, name in OP_NAMES.items()}

_EXCEPTIONS: dict[int, type[GGError]] = {
    lib.GG_ERR_SHAPE: ShapeError,
    lib.GG_ERR_FORMAT: FormatError,
    lib.GG_ERR_UNSUPPORTED: UnsupportedError,
    lib.GG_ERR_MEMORY: MemoryLimitError,
    lib.GG_ERR_DATA: DataError,
    lib.GG_ERR_ARGUMENT: GGError,
    lib.GG_ERR_LIMIT: LimitError,
}


def call(function: Any, *arguments: Any, where: Callable[[int], str] = lambda node: "") -> Any:
    """What a C function gives that takes a gg_error as its last argument; where it fails, the error as an exception.

    where: what the message begins with, given the id of the node that the error is about, -1 if it is about none.
    """
    err = ffi.new("gg_error *")
    result = function(*arguments, err)
    if (result < 0) if isinstance(result, int) else (result == ffi.NULL):
        raise _exception(err, where(err.node))
    return result


def _exception(err: Any, prefix: str) -> GGError:
    """What is wrong in a file ends with the rule's code."""
    message, code = ffi.string(err.message).decode("utf-8", "replace"), ffi.string(err.code).decode()
    if err.offset < 0:
        return _EXCEPTIONS[err.kind](prefix + message, code=code)
    text = f"{prefix}byte {err.offset:#x}: {message} [{code}]"
    return _EXCEPTIONS[err.kind](text, code=code, offset=int(err.offset))


def memory(owner: object, data: Any, nbytes: int) -> memoryview:
    """Bytes of the C library's, writable. Whatever is made of them, numpy's arrays too, keeps `owner` alive, which is
    to free them."""
    import numpy as np

    array: Any = np.asarray(_Memory(owner, int(ffi.cast("intptr_t", data)), nbytes))
    return memoryview(array)


class _Memory:
    """What numpy takes for an array, and holds on to as long as there is a view of it."""

    def __init__(self, owner: object, address: int, nbytes: int) -> None:
        self.owner = owner
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (nbytes,), "data": (address, False)}


# ---------------------------------------------------------------- ggml's order


def ne_of(shape: Sequence[int]) -> list[int]:
    """A numpy-order shape as ggml's four sizes."""
    return [int(n) for n in reversed(shape)] + [1] * (N_DIMS - len(shape))


def shape_of(ne: Sequence[int], rank: int | None = None) -> tuple[int, ...]:
    """ggml's four sizes in numpy order, to `rank` axes; without one, leading axes of size 1 are dropped."""
    sizes = list(ne)
    if rank is None:
        rank = max([i + 1 for i, n in enumerate(sizes) if n != 1], default=1)
    return tuple(int(n) for n in reversed(sizes[:rank]))


def ggml_axes(axes: Sequence[int]) -> list[int]:
    """Numpy's `transpose` axes as op_params of PERMUTE: ggml's dimension i goes to place result[i]."""
    rank = len(axes)
    places = list(range(N_DIMS))
    for to, source in enumerate(axes):
        places[rank - 1 - source] = rank - 1 - to
    return places


def in_file_order(per_axis: Sequence[T]) -> tuple[T, ...]:
    """What there is of each of four axes, in numpy's order, as metadata lists it."""
    return tuple(reversed(per_axis))


def pack_params(op: Op, params: dict[str, Any]) -> bytes:
    """The 64 bytes of op_params."""
    words = bytearray(64)
    for p in op.params:
        struct.pack_into({"f32": "<f", "i32": "<i", "i64": "<q"}[p.kind], words, 4 * p.word, params[p.name])
    return bytes(words)
