"""A graph of the C library: tensors by id, in numpy's order of axes, and the memory of its leafs.

Used by the tracer, which asks it for the shape of every new node, by the importer and by everything that runs.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from typing import Any, cast

from ggmlgraph.core.boundary import (
    OP_NAMES,
    OP_NUMBERS,
    TYPE_NAMES,
    TYPES,
    call,
    ffi,
    lib,
    memory,
    ne_of,
    pack_params,
    shape_of,
)
from ggmlgraph.errors import FormatError, MemoryLimitError
from ggmlgraph.graphfile.records import Sizes
from ggmlgraph.table.op import Op


class CoreGraph:
    """An owned `gg_graph`; ids are ints, shapes numpy-order tuples.

    Graphs derived from one another share the memory of leafs, which lives as long as one of them, or an array that
    looks into it.
    """

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

    # ------------------------------------------------------------ by name

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

    # ------------------------------------------------------------ what a tensor is

    def name(self, tensor_id: int) -> str:
        return str(ffi.string(self.tensor(tensor_id).name).decode("utf-8", "replace"))

    def label(self, tensor_id: int) -> str:
        """The name, or the id of a tensor that has none."""
        return self.name(tensor_id) or str(tensor_id)

    def op(self, tensor_id: int) -> str:
        """A name in the op table; "none" for a leaf."""
        return OP_NAMES[self.tensor(tensor_id).op]

    def op_params(self, tensor_id: int) -> list[int]:
        """The words that hold the op's parameters."""
        return list(self.tensor(tensor_id).op_params)

    def is_leaf(self, tensor_id: int) -> bool:
        return bool(self.tensor(tensor_id).op == 0)

    def leafs(self) -> list[int]:
        """Ids of the leafs."""
        return [i for i in range(len(self)) if self.is_leaf(i)]

    def flags(self, tensor_id: int) -> int:
        return int(self.tensor(tensor_id).flags)

    def flagged(self, flag: int) -> list[int]:
        """Ids of the tensors that have a flag."""
        return [i for i in range(len(self)) if self.flags(i) & flag]

    def src(self, tensor_id: int) -> list[int]:
        """Ids of the sources, -1 for an absent one."""
        t = self.tensor(tensor_id)
        return list(t.src[0 : t.n_src])

    def writes(self) -> list[int]:
        """Ids of the nodes that write into leafs, a key-value cache say: every run does them."""
        return [i for i in range(len(self)) if lib.gg_writes_leaf(self.handle, i)]

    def dtype(self, tensor_id: int) -> str:
        return TYPE_NAMES[self.tensor(tensor_id).type]

    # ------------------------------------------------------------ how a tensor lies

    def shape(self, tensor_id: int, rank: int | None = None) -> tuple[int, ...]:
        """Sizes; without a rank, leading axes of size 1 are dropped."""
        return shape_of(self.tensor(tensor_id).ne, rank)

    def nbytes(self, tensor_id: int) -> int:
        """Bytes from the first element to the end of the last."""
        return int(lib.gg_nbytes(self.handle, tensor_id))

    def strides(self, tensor_id: int) -> tuple[int, ...]:
        """Bytes from one element to the next along each of four axes."""
        return tuple(reversed(list(self.tensor(tensor_id).nb)))

    def file_layout(self, tensor_id: int) -> tuple[Sizes, Sizes]:
        """Sizes and strides as a file has them."""
        t = self.tensor(tensor_id)
        return cast(Sizes, tuple(t.ne)), cast(Sizes, tuple(t.nb))

    def base(self, tensor_id: int) -> int:
        """The tensor in whose memory this one lies: itself, unless it is a view."""
        return int(self.tensor(tensor_id).root)

    def begins_inside(self, tensor_id: int) -> bool:
        """Whether a view begins elsewhere than its base."""
        return bool(self.tensor(tensor_id).root_offset != 0)

    def is_contiguous(self, tensor_id: int) -> bool:
        """Whether elements lie in order without gaps."""
        t = self.tensor(tensor_id)
        stride = t.nb[0]
        for n, nb in zip(t.ne, t.nb, strict=True):
            if n != 1 and nb != stride:
                return False
            stride *= n
        return True

    def view_offset(self, tensor_id: int) -> int:
        """Bytes into the source of a view; 0 for anything else."""
        words = self.tensor(tensor_id).op_params
        return int(words[0] & 0xFFFFFFFF | words[1] << 32) if self.op(tensor_id) == "view" else 0

    # ------------------------------------------------------------ adding

    def leaf(self, dtype: str, shape: Sequence[int], flags: int, name: str) -> int:
        """Append a leaf."""
        arguments = (TYPES[dtype], ne_of(shape), flags, name.encode())
        return int(call(lib.gg_leaf, self.handle, *arguments, where=lambda _: f"{name}: "))

    def node(
        self,
        op: Op,
        src: Sequence[int],
        params: dict[str, Any],
        shape: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> int:
        """Append `op`; raises what its shape rule says. strides: of a view, as `strides` gives them."""
        ne = ffi.NULL if shape is None else ffi.new("int64_t[4]", ne_of(shape))
        nb = ffi.NULL if strides is None else ffi.new("int64_t[4]", list(reversed(strides)))
        words = ffi.from_buffer("int32_t[]", pack_params(op, params))
        return int(call(lib.gg_node, self.handle, OP_NUMBERS[op.name], len(src), list(src), words, ne, nb))

    def set_name(self, tensor_id: int, name: str, flags: int = 0) -> None:
        """Name a tensor and add flags to it."""
        call(lib.gg_set_name, self.handle, tensor_id, name.encode(), flags)

    def set_flags(self, tensor_id: int, flags: int) -> None:
        """Exactly these flags."""
        call(lib.gg_set_flags, self.handle, tensor_id, flags)

    # ------------------------------------------------------------ memory of leafs

    def leaf_bytes(self, tensor_id: int) -> memoryview:
        """The memory of a leaf, writable; it stays as long as it is looked at."""
        data = call(lib.gg_leaf_data, self.handle, tensor_id)
        return memory(self, data, self.nbytes(tensor_id))

    def leaf_nbytes(self) -> int:
        """Bytes of all leafs."""
        return int(lib.gg_leaf_nbytes(self.handle))

    def held_nbytes(self) -> int:
        """Bytes of the leafs that have memory by now and do not lie in a mapped file."""
        return int(lib.gg_held_nbytes(self.handle))

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
