"""The graph file as records: one for each tensor, in the words of the newest dialect, and their order in a file.

What the reader (reader.py) and the writer (writer.py) share; with them the only Python that knows ggml's
dimension order and bytes. Used by them and by whoever makes or looks at records: export, rewrite, trained.

Tensors of a file are numbered leafs first, then nodes, in the order of `ggml_build_forward_expand`.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from ggmlgraph.errors import UnsupportedError, UsageError
from ggmlgraph.table.dialect import INPUT, PARAM, SET, SIZE_0, TYPES, Dialect, Type, Variation

if TYPE_CHECKING:
    import numpy as np

Sizes = tuple[int, int, int, int]
Buffer = bytes | mmap.mmap

CHUNK = 1 << 20  # bytes of data that are streamed at a time
LEAF_UNIT = 4  # bytes that a leaf of ours has a multiple of
LEAF_ALIGNMENT = 16  # and those of bytes, so that tensors behind them stay aligned
N_OP_PARAMS = 64  # bytes of a Record's op_params
WORDS = struct.Struct(f"<{N_OP_PARAMS // 4}I")  # the same as words


@dataclass(frozen=True)
class Record:
    """One tensor of a file; leafs and parameters have `data`, called to stream their bytes in chunks.

    `src` are indices into the list of records it belongs to, each below its own but for `may_be_itself`; -1 for an
    absent source.
    """

    name: str
    type: str
    ne: Sizes
    nb: Sizes
    op: str = "NONE"
    unary: str | None = None  # which, when `op` is UNARY; its number, which is the dialect's, is not in op_params here
    flags: int = 0
    op_params: bytes = bytes(N_OP_PARAMS)
    src: tuple[int, ...] = ()
    data: Callable[[], Iterable[bytes | memoryview]] | None = field(default=None, compare=False)  # None: zeros
    name_tail: bytes = field(default=b"", compare=False)  # what stock ggml left of an older, longer name behind the NUL

    @property
    def is_param(self) -> bool:
        return bool(self.flags & PARAM)

    @property
    def n_elements(self) -> int:
        return math.prod(self.ne)

    @property
    def nbytes(self) -> int:
        """Bytes from the first element to the end of the last, as ggml_nbytes counts."""
        element = TYPES[self.type]
        row = element.nbytes if element.block == 1 else self.ne[0] * self.nb[0] // element.block
        first = 0 if element.block == 1 else 1
        return row + sum((self.ne[i] - 1) * self.nb[i] for i in range(first, 4))


def leaf(name: str, payload: bytes) -> Record:
    """A leaf of bytes, padded so that tensors behind it stay aligned."""
    payload += b"\0" * (-len(payload) % LEAF_ALIGNMENT)
    n = len(payload)
    data: Callable[[], Iterable[bytes]] = partial(iter, [payload])
    return Record(name, "I8", (n, 1, 1, 1), (1, n, n, n), data=data)


def dense_strides(element: Type, ne: Sequence[int]) -> Sizes:
    """nb of a contiguous tensor."""
    nb1 = element.nbytes * (ne[0] // element.block)
    return element.nbytes, nb1, nb1 * ne[1], nb1 * ne[1] * ne[2]


def may_be_itself(op: str, k: int) -> bool:
    """Whether source k of an op may be the node itself: ggml_cast makes a CPY whose destination is the CPY."""
    return op == "CPY" and k == 1


def nodes_nbytes(nodes: Iterable[Record]) -> int:
    """What size_eval counts: every node, views and parameters too, padded to 16 bytes."""
    return sum((node.nbytes + 15) // 16 * 16 for node in nodes)


def meant_otherwise(variation: Variation, words: Sequence[int], size_0: int) -> int | None:
    """The word by which an op is another one in this dialect; None if it is the same."""
    for only in variation.only:
        word = words[only.word]
        holds = word != 0 if only.value == SET else word == (size_0 if only.value == SIZE_0 else only.value)
        if not holds and only.mode in (None, words[2]):
            return only.word
    return None


# ---------------------------------------------------------------- a file that has been read


@dataclass(frozen=True)
class CGraph:
    """A file that has been read. Data stay in the file until asked for."""

    dialect: str
    size_eval: int
    leafs: tuple[Record, ...]
    nodes: tuple[Record, ...]
    offsets: tuple[int, ...]  # byte offset of each tensor's data; -1 where the file has none
    buffer: Buffer

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """Leafs and nodes, as `src` numbers them."""
        return self.leafs + self.nodes

    def find(self, name: str) -> int | None:
        """Index of the first tensor of this name."""
        return next((i for i, record in enumerate(self.records) if record.name == name), None)

    def array(self, index: int) -> np.ndarray[Any, Any]:
        """A tensor's data as a read-only view of the file, in numpy order without leading axes of size 1."""
        import numpy as np

        record = self.records[index]
        if self.offsets[index] < 0:
            raise UsageError(f"{record.name!r} is computed; the file has no data of it")
        dtype = TYPES[record.type].numpy
        if dtype is None:
            raise UnsupportedError(f"{record.name!r} is {record.type}, which numpy cannot show")
        flat = np.frombuffer(self.buffer, dtype, record.n_elements, self.offsets[index])
        rank = max((i + 1 for i in range(4) if record.ne[i] != 1), default=1)
        view = flat.reshape(record.ne[:rank][::-1])
        view.flags.writeable = False
        return view


# ---------------------------------------------------------------- order


@dataclass(frozen=True)
class Order:
    """Records as a file holds them, with `src` in the file's numbering."""

    leafs: tuple[Record, ...]
    nodes: tuple[Record, ...]


def order(records: Sequence[Record], roots: Sequence[int], dialect: Dialect) -> Order:
    """Number the tensors the way ggml does: depth first from each root, sources left to right.

    Nodes that no root needs are dropped; leafs that no root needs (metadata, tokenizer) come after the others.
    """
    for root in roots:
        if not 0 <= root < len(records):
            raise UsageError(f"root {root} is not one of {len(records)} records")
    visited = visit(records, roots)
    leafs = [i for i in visited if _is_leaf(records[i], dialect)]
    nodes = [i for i in visited if not _is_leaf(records[i], dialect)]
    seen = set(visited)
    leafs += [i for i, r in enumerate(records) if i not in seen and r.op == "NONE" and not r.is_param]
    number = {old: new for new, old in enumerate([*leafs, *nodes])}
    number[-1] = -1

    def place(index: int, default_name: str) -> Record:
        r = records[index]
        return replace(r, name=r.name or default_name, src=tuple(number[s] for s in r.src))

    return Order(
        tuple(place(index, f"leaf_{k}") for k, index in enumerate(leafs)),
        tuple(place(index, f"node_{k}") for k, index in enumerate(nodes)),
    )


def _is_leaf(record: Record, dialect: Dialect) -> bool:
    return record.op == "NONE" and not (record.is_param and dialect.param_nodes)


def visit(records: Sequence[Record], roots: Sequence[int]) -> list[int]:
    """Post-order of what the roots need, without recursion: (record, its next source) on a stack."""
    done: list[int] = []
    seen: set[int] = set()
    stack = [(root, 0) for root in reversed(roots)]
    while stack:
        index, k = stack.pop()
        if k == 0:
            if index in seen:
                continue
            seen.add(index)
        src = records[index].src
        if k == len(src):
            done.append(index)
            continue
        stack.append((index, k + 1))
        if src[k] == index and may_be_itself(records[index].op, k):
            continue
        if src[k] >= index:
            raise UsageError(f"record {index} has the source {src[k]}, which does not come before it")
        if src[k] >= 0 and src[k] not in seen:
            stack.append((src[k], 0))
    return done


def computation(records: Sequence[Record], root: int) -> list[tuple[Any, ...]]:
    """How a tensor is computed: equal for two graphs that do the same in the same order, whatever their nodes' names,
    numbers and the types of their weights."""
    visited = visit(records, [root])
    number = {-1: -1, **{index: k for k, index in enumerate(visited)}}

    def step(r: Record) -> tuple[Any, ...]:
        given = r.name if r.op == "NONE" else ""
        src = [number[s] for s in r.src]
        while src and src[-1] < 0:
            src.pop()
        return given, r.ne, r.op, r.unary, r.op_params.ljust(N_OP_PARAMS, b"\0"), src

    return [step(records[index]) for index in visited]


def digest(records: Iterable[Record]) -> str:
    """Hash of a model's values by name, whatever is trained of them and at whatever sizes of inputs the graph is."""
    found = hashlib.sha256()
    for record in sorted(records, key=lambda record: record.name):
        if record.op != "NONE" or record.flags & INPUT or record.name.startswith("ggmlgraph."):
            continue
        found.update(repr([record.name, record.type, record.ne]).encode())
        for chunk in record.data() if record.data else ():
            found.update(chunk)
    return found.hexdigest()
