"""The C boundary: the extension module's graphs seen from Python, and its errors as exceptions.

Together with the cgraph modules the only place that knows ggml's dimension order (ne[0] fastest). Everything above it
speaks numpy order. Used by the tracer, which asks it for the shape of every new node, and by the runtime.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

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
    UsageError,
)
from ggmlgraph.table import ops as _ops  # noqa: F401  (fills the table)
from ggmlgraph.table.dialect import V2
from ggmlgraph.table.op import TABLE, Op

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


def new_error() -> Any:
    """A gg_error for one call to fill."""
    return ffi.new("gg_error *")


def exception(err: Any, prefix: str = "") -> GGError:
    """What a filled gg_error means, as an exception to raise. What is wrong in a file ends with the rule's code."""
    message, code = ffi.string(err.message).decode("utf-8", "replace"), ffi.string(err.code).decode()
    if err.offset < 0:
        return _EXCEPTIONS[err.kind](prefix + message, code=code)
    text = f"{prefix}byte {err.offset:#x}: {message} [{code}]"
    return _EXCEPTIONS[err.kind](text, code=code, offset=int(err.offset))


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


def pack_params(op: Op, params: dict[str, Any]) -> bytes:
    """The 64 bytes of op_params."""
    words = bytearray(64)
    for p in op.params:
        struct.pack_into({"f32": "<f", "i32": "<i", "i64": "<q"}[p.kind], words, 4 * p.word, params[p.name])
    return bytes(words)


class CoreGraph:
    """An owned `gg_graph`; ids are ints, shapes numpy-order tuples."""

    def __init__(self, handle: Any | None = None, mapped: mmap.mmap | None = None) -> None:
        """mapped: the file in which leafs lie, if they do not lie in memory of the graph's own."""
        handle = lib.gg_graph_new() if handle is None else handle
        if handle == ffi.NULL:
            raise MemoryLimitError("no memory for a graph")
        self.handle = ffi.gc(handle, lib.gg_graph_free)
        self._mapped = mapped

    def derived(self, handle: Any) -> CoreGraph:
        """A graph made from this one, which shares the memory of its leafs."""
        return CoreGraph(handle, self._mapped)

    def __len__(self) -> int:
        return int(lib.gg_graph_size(self.handle))

    def tensor(self, tensor_id: int) -> Any:
        """The `gg_tensor *`; valid until the next tensor is added."""
        return lib.gg_graph_tensor(self.handle, tensor_id)

    def find(self, name: str) -> int:
        """Id of the tensor of that name, -1 if there is none: its last version, if others write its memory (order.c).

        Raises FormatError if there are several.
        """
        tensor_id = int(lib.gg_graph_find(self.handle, name.encode()))
        if tensor_id < -1:
            raise _ambiguous(name)
        return tensor_id

    def ids(self, names: Iterable[str]) -> list[int]:
        """`find` for many names, in one pass. Raises FormatError if a tensor is not there or not the only one."""
        found: dict[str, list[int]] = {name: [] for name in names}
        for i in range(len(self)):
            same = found.get(self.name(i), [])
            if same and lib.gg_is_version(self.handle, i, same[-1]):
                same.pop()
            same.append(i)
        for name, ids in found.items():
            if not ids:
                raise FormatError(f"the graph has no tensor {name!r}")
            if len(ids) > 1:
                raise _ambiguous(name)
        return [ids[0] for ids in found.values()]

    def flagged(self, flag: int) -> list[int]:
        """Ids of the tensors that have a flag."""
        return [i for i in range(len(self)) if self.tensor(i).flags & flag]

    def name(self, tensor_id: int) -> str:
        return str(ffi.string(self.tensor(tensor_id).name).decode("utf-8", "replace"))

    def op(self, tensor_id: int) -> str:
        return OP_NAMES[self.tensor(tensor_id).op]

    def dtype(self, tensor_id: int) -> str:
        return TYPE_NAMES[self.tensor(tensor_id).type]

    def shape(self, tensor_id: int, rank: int | None = None) -> tuple[int, ...]:
        return shape_of(self.tensor(tensor_id).ne, rank)

    def strides(self, tensor_id: int) -> list[int]:
        """ggml's four strides in bytes."""
        return list(self.tensor(tensor_id).nb)

    def view_offset(self, tensor_id: int) -> int:
        """Bytes into the source of a view; 0 for anything else."""
        words = self.tensor(tensor_id).op_params
        return int(words[0] & 0xFFFFFFFF | words[1] << 32) if self.op(tensor_id) == "view" else 0

    def leaf(self, dtype: str, shape: Sequence[int], flags: int, name: str) -> int:
        err = new_error()
        tensor_id = lib.gg_leaf(self.handle, TYPES[dtype], ne_of(shape), flags, name.encode(), err)
        if tensor_id < 0:
            raise exception(err, f"{name}: ")
        return int(tensor_id)

    def node(
        self,
        op: Op,
        src: Sequence[int],
        params: dict[str, Any],
        shape: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> int:
        """Append `op`; raises what its shape rule says."""
        err = new_error()
        ne = ffi.NULL if shape is None else ffi.new("int64_t[4]", ne_of(shape))
        nb = ffi.NULL if strides is None else ffi.new("int64_t[4]", list(strides))
        words = ffi.from_buffer("int32_t[]", pack_params(op, params))
        tensor_id = lib.gg_node(self.handle, OP_NUMBERS[op.name], len(src), list(src), words, ne, nb, err)
        if tensor_id < 0:
            raise exception(err)
        return int(tensor_id)

    def set_name(self, tensor_id: int, name: str, flags: int = 0) -> None:
        err = new_error()
        if lib.gg_set_name(self.handle, tensor_id, name.encode(), flags, err) < 0:
            raise exception(err)

    def set_flags(self, tensor_id: int, flags: int) -> None:
        """Exactly these flags."""
        err = new_error()
        if lib.gg_set_flags(self.handle, tensor_id, flags, err) < 0:
            raise exception(err)

    def leaf_bytes(self, tensor_id: int) -> Any:
        """The memory of a leaf, writable, as a buffer."""
        err = new_error()
        data = lib.gg_leaf_data(self.handle, tensor_id, err)
        if data == ffi.NULL:
            raise exception(err)
        return ffi.buffer(data, lib.gg_nbytes(self.handle, tensor_id))

    def release(self, tensor_id: int) -> None:
        """Give back the memory of a leaf that lies in a mapped file: read again when it is used again."""
        if self._mapped is None:
            return
        data = ffi.from_buffer(self.leaf_bytes(tensor_id))
        begin = int(ffi.cast("intptr_t", data)) - int(ffi.cast("intptr_t", ffi.from_buffer(self._mapped)))
        first, end = -(-begin // mmap.PAGESIZE), (begin + len(data)) // mmap.PAGESIZE  # whole pages
        if 0 <= first < end <= len(self._mapped) // mmap.PAGESIZE:
            self._mapped.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (end - first) * mmap.PAGESIZE)


def _ambiguous(name: str) -> FormatError:
    return FormatError(f"more than one tensor is named {name!r}", code="AmbiguousName")


MATMUL_PRECISIONS = {"float32": lib.GG_MATMUL_FLOAT32, "bf16": lib.GG_MATMUL_BF16}


def matmul_precision_number(name: str) -> int:
    """GG_MATMUL_* of a name in MATMUL_PRECISIONS. Raises UsageError for any other."""
    if name not in MATMUL_PRECISIONS:
        raise UsageError(f"matmul precision {name!r} is not one of {', '.join(MATMUL_PRECISIONS)}")
    return int(MATMUL_PRECISIONS[name])


def peak_flops(isa: str | None, threads: int, matmul_precision: str = "float32") -> float:
    """Floating-point operations per second of the multiply-adds that products of this precision use, in registers: the
    best of four short measurements."""
    level, precision = ffi.NULL if isa is None else isa.encode(), matmul_precision_number(matmul_precision)
    return float(max(lib.gg_peak_flops(level, precision, threads, 0.05) for _ in range(4)))


@cache
def isa_levels() -> tuple[str, ...]:
    """ISA levels this build has and this CPU runs, best first."""
    names, level = [], 0
    while (name := lib.gg_isa_name(level)) != ffi.NULL:
        if lib.gg_isa_supported(level):
            names.append(ffi.string(name).decode())
        level += 1
    return tuple(names)
