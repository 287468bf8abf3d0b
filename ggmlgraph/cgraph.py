"""The graph file: the only Python that knows ggml's dimension order and bytes.

`write` serves `Graph.save` and `convert`, `read` and `emit` serve `rewrite`; the runtime reads files with its own
importer in C, so `read` is the second, independent reader. Both follow a dialect's tables (dialect.py).
`read` checks container, tensors and sources of an untrusted file; it does not derive shapes again, which C does.

Tensors of a file are numbered leafs first, then nodes, in the order of `ggml_build_forward_expand`.
"""

from __future__ import annotations

import io
import mmap
import os
import re
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ggmlgraph.dialect import (
    ALL_FLAGS,
    DIALECTS,
    MAGIC,
    NOTHING,
    PARAM,
    SET,
    SIZE_0,
    TYPES,
    V2,
    Dialect,
    Layout,
    Variation,
)
from ggmlgraph.durable import WriteBehind, replacing
from ggmlgraph.errors import FormatError, GGError, LimitError, ShapeError, UnsupportedError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from ggmlgraph.dialect import Type

Sizes = tuple[int, int, int, int]
Buffer = bytes | mmap.mmap

MAX_TENSORS = 1 << 20
MAX_NE = 1 << 40
MAX_ELEMENTS = 1 << 48
MAX_STRIDE = 1 << 50
CHUNK = 1 << 20
LEAF_UNIT = 4  # bytes that a leaf has a multiple of
# Names reach terminals: no control characters, no line or paragraph separators, nothing that changes direction.
NOT_IN_NAMES = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

N_OP_PARAMS = 64  # bytes of a Record's op_params
WORDS = struct.Struct(f"<{N_OP_PARAMS // 4}I")  # the same as words
N_THREADS = 64  # stock ggml's scratch memory is sized for this many
UNARY = frozenset(V2.unary)
VIEWS = frozenset(("VIEW", "PERMUTE", "TRANSPOSE", "CPY"))  # ops whose strides need not be contiguous
NUMPY_TYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


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
    def nbytes(self) -> int:
        """Bytes from the first element to the end of the last, as ggml_nbytes counts."""
        element = TYPES[self.type]
        row = element.nbytes if element.block == 1 else self.ne[0] * self.nb[0] // element.block
        first = 0 if element.block == 1 else 1
        return row + sum((self.ne[i] - 1) * self.nb[i] for i in range(first, 4))


def dense_strides(element: Type, ne: Sequence[int]) -> Sizes:
    """nb of a contiguous tensor."""
    nb1 = element.nbytes * (ne[0] // element.block)
    return element.nbytes, nb1, nb1 * ne[1], nb1 * ne[1] * ne[2]


def may_be_itself(op: str, k: int) -> bool:
    """Whether source k of an op may be the node itself: ggml_cast makes a CPY whose destination is the CPY."""
    return op == "CPY" and k == 1


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


# ---------------------------------------------------------------- writing


def write(
    path: str | os.PathLike[str],
    records: Sequence[Record],
    roots: Sequence[int],
    dialect: str = "v2",
    size_eval_slack: int | None = None,
) -> None:
    """Write a file at once or not at all."""
    with replacing(Path(path)) as temporary, io.BufferedWriter(WriteBehind(temporary)) as stream:
        dump(stream, records, roots, dialect, size_eval_slack)


def dump(
    stream: BinaryIO,
    records: Sequence[Record],
    roots: Sequence[int],
    dialect: str = "v2",
    size_eval_slack: int | None = None,
) -> None:
    """Write a file to a stream. `size_eval_slack`: see `work_nbytes`, the default."""
    target = DIALECTS[dialect]
    placed = order(records, roots, target)
    _check_names([*placed.leafs, *placed.nodes])
    _check_alignment(placed)
    slack = work_nbytes(placed) if size_eval_slack is None else size_eval_slack
    emit(stream, placed, target, slack)


def work_nbytes(placed: Order) -> int:
    """Memory beside the tensors that stock ggml wants for its plan's work buffer, rounded up generously.

    Its importer takes `size_eval` bytes for the nodes and gives `ggml_graph_compute_with_ctx` nothing more. The
    largest demands are one float32 row per thread (soft_max, rope: up to 3) and what `_op_nbytes` says.
    """
    tensors = [*placed.leafs, *placed.nodes]
    rows = max((3 * 4 * node.ne[0] for node in placed.nodes), default=0)
    others = max((_op_nbytes(node, tensors) for node in placed.nodes), default=0)
    return max(rows * N_THREADS, others) + 64 * N_THREADS + 4096


def _op_nbytes(node: Record, tensors: list[Record]) -> int:
    """What an op wants that depends on its operands, in the worst case: rows of labels per thread, operands of a
    transposed convolution in another order, a product's second operand in the first one's type, lists of its rows."""
    if node.op not in ("MUL_MAT", "MUL_MAT_ID", "CONV_TRANSPOSE_1D", "CONV_TRANSPOSE_2D", "CROSS_ENTROPY_LOSS"):
        return 0
    a, b = (tensors[s] for s in node.src[:2])
    if node.op == "CROSS_ENTROPY_LOSS":
        return 4 * (1 + a.ne[0]) * N_THREADS
    if node.op.startswith("CONV"):
        return 4 * (_n_elements(a) + _n_elements(b))
    converted = 0 if a.type == "F32" else 4 * _n_elements(b)
    lists = 8 * a.ne[2] * (1 + b.ne[2]) if node.op == "MUL_MAT_ID" else 0
    return 2 * converted + lists


def nodes_nbytes(nodes: Iterable[Record]) -> int:
    """What size_eval counts: every node, views and parameters too, padded to 16 bytes."""
    return sum((node.nbytes + 15) // 16 * 16 for node in nodes)


def _n_elements(record: Record) -> int:
    n = 1
    for size in record.ne:
        n *= size
    return n


def _check_names(tensors: Iterable[Record]) -> None:
    """ggml finds tensors by the first name that matches."""
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise UsageError(f"two tensors are named {tensor.name!r}")
        seen.add(tensor.name)


def _check_alignment(placed: Order) -> None:
    """A file has no padding, so a leaf of odd size would misalign every tensor behind it in stock ggml."""
    for leaf in placed.leafs:
        if leaf.nbytes % LEAF_UNIT:
            raise UsageError(f"leaf {leaf.name!r} has {leaf.nbytes} bytes; pad it to a multiple of {LEAF_UNIT}")


def _check_shapes(placed: Order, dialect: Dialect) -> None:
    tensors = [*placed.leafs, *placed.nodes]
    for node in placed.nodes:
        if node.op in dialect.same_shape and len({tensors[s].ne for s in node.src if s >= 0}) > 1:
            raise UnsupportedError(f"{node.name!r}: dialect {dialect.name} has no {node.op} of two shapes")


def emit(stream: BinaryIO, placed: Order, dialect: Dialect, size_eval_slack: int) -> None:
    """Write ordered records. Names may repeat, as they do in files of stock ggml."""
    _check_shapes(placed, dialect)
    size_eval = nodes_nbytes(placed.nodes) + size_eval_slack
    stream.write(dialect.header.format.pack(MAGIC, dialect.version, len(placed.leafs), len(placed.nodes), size_eval))
    for leaf in placed.leafs:
        stream.write(_pack(leaf, dialect, dialect.leaf, len(placed.leafs)))
        _write_data(stream, leaf)
        stream.write(bytes(dialect.data_nbytes(leaf.nbytes) - leaf.nbytes))
    for node in placed.nodes:
        stream.write(_pack(node, dialect, dialect.node, len(placed.leafs)))
        if node.is_param:
            _write_data(stream, node)


def _pack(record: Record, dialect: Dialect, layout: Layout, n_leafs: int) -> bytes:
    """One record by the layout's fields, whichever they are."""
    values = _values(record, dialect, layout)
    if layout.n("src"):
        base = n_leafs if dialect.node_base is None else dialect.node_base
        src = [s - n_leafs + base if s >= n_leafs else s for s in _sources(record, dialect)]
        values["src"] = (*src, *[-1] * (layout.n("src") - len(src)))
    packed: list[Any] = []
    for f in layout.fields:
        value = values[f.name]
        packed += value if isinstance(value, tuple) else (value,)
    return layout.format.pack(*packed)


def _values(record: Record, dialect: Dialect, layout: Layout) -> dict[str, Any]:
    if not record.name or NOT_IN_NAMES.search(record.name) or len(record.name.encode()) >= layout.n("name"):
        raise UsageError(
            f"name {record.name!r} is empty, has control characters, or is {layout.n('name')} bytes or longer"
        )
    op = record.unary if record.unary and not dialect.unary else record.op
    if op not in dialect.op_number or op in dialect.refused or record.type not in dialect.types:
        raise UnsupportedError(f"{record.name!r}: dialect {dialect.name} has no {op} of {record.type}")
    op_params = _op_params(record, dialect)
    if any(op_params[layout.n("op_params") :]):
        raise UsageError(f"{record.name!r}: {len(record.op_params)} bytes of op_params do not fit the record")
    if record.src and len(record.src) > layout.n("src"):
        raise UsageError(f"{record.name!r}: {len(record.src)} sources do not fit the record")
    if record.op == "NONE" and record.nb != dense_strides(TYPES[record.type], record.ne):
        raise UsageError(f"{record.name!r}: a leaf must be contiguous")
    return {
        "type": dialect.types[record.type],
        "op": dialect.op_number[op],
        "flags": record.flags,
        "n_dims": max((i + 1 for i in range(4) if record.ne[i] != 1), default=1),
        **{f"ne{i}": record.ne[i] for i in range(4)},
        **{f"nb{i}": record.nb[i] for i in range(4)},
        "name": record.name.encode() + b"\0" + record.name_tail,
        "op_params": op_params,
    }


def _op_params(record: Record, dialect: Dialect) -> bytes:
    """The 64 bytes as the dialect stores them."""
    variation = dialect.variations.get(record.op)
    if variation is not None:
        return _vary(record, variation, dialect)
    if record.unary is None or not dialect.unary:
        return record.op_params
    if record.unary not in dialect.unary_number:
        raise UnsupportedError(f"{record.name!r}: dialect {dialect.name} has no unary op {record.unary}")
    return struct.pack("<i", dialect.unary_number[record.unary]) + record.op_params[4:]


def _vary(record: Record, variation: Variation, dialect: Dialect) -> bytes:
    words = WORDS.unpack(record.op_params.ljust(N_OP_PARAMS, b"\0"))
    if variation.op is not None or variation.words_in is not None:
        raise UnsupportedError(f"{record.name!r}: dialect {dialect.name} stores what {record.op} needs as a tensor")
    word = meant_otherwise(variation, words, record.ne[0])
    if word is not None:
        raise UnsupportedError(
            f"{record.name!r}: with word {word} as it is, dialect {dialect.name} meant another {record.op}"
        )
    for w, word in enumerate(words):
        if w not in variation.words and word != variation.implied.get(w, 0):
            what = f"op_params word {w} of {record.op} is {word:#x}, which dialect {dialect.name} cannot say"
            raise UnsupportedError(f"{record.name!r}: {what}")
    stored = [0 if w == NOTHING else words[w] for w in variation.words]
    return WORDS.pack(*stored, *[0] * (len(words) - len(stored)))


def meant_otherwise(variation: Variation, words: Sequence[int], size_0: int) -> int | None:
    """The word by which an op is another one in this dialect; None if it is the same."""
    for only in variation.only:
        word = words[only.word]
        holds = word != 0 if only.value == SET else word == (size_0 if only.value == SIZE_0 else only.value)
        if not holds and only.mode in (None, words[2]):
            return only.word
    return None


def _sources(record: Record, dialect: Dialect) -> list[int]:
    """Sources in the order in which the dialect stores them."""
    variation = dialect.variations.get(record.op)
    if variation is None:
        return list(record.src)
    for k, s in enumerate(record.src):
        if s >= 0 and k not in variation.src:
            n = sum(k != NOTHING for k in variation.src)
            raise UnsupportedError(f"{record.name!r}: {record.op} takes {n} sources in {dialect.name}")
    return [record.src[k] if 0 <= k < len(record.src) else -1 for k in variation.src]


def _write_data(stream: BinaryIO, record: Record) -> None:
    if record.data is None and record.is_param:
        raise UsageError(f"parameter {record.name!r} has no data")
    written = 0
    for chunk in record.data() if record.data else _zeros(record.nbytes):
        written += stream.write(chunk)
    if written != record.nbytes:
        raise UsageError(f"data of {record.name!r} are {written} bytes, not {record.nbytes}")


def _zeros(nbytes: int) -> Iterator[bytes]:
    for at in range(0, nbytes, CHUNK):
        yield bytes(min(CHUNK, nbytes - at))


# ---------------------------------------------------------------- reading


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
        if record.type not in NUMPY_TYPES:
            raise UnsupportedError(f"{record.name!r} is {record.type}, which numpy cannot show")
        flat = np.frombuffer(self.buffer, NUMPY_TYPES[record.type], _n_elements(record), self.offsets[index])
        rank = max((i + 1 for i in range(4) if record.ne[i] != 1), default=1)
        view = flat.reshape(record.ne[:rank][::-1])
        view.flags.writeable = False
        return view


def read(path: str | os.PathLike[str], dialect: str = "v2") -> CGraph:
    """Read and check a file; its data are mapped, not loaded."""
    source = Path(path)
    if not stat.S_ISREG(source.stat().st_mode):
        raise UsageError(f"{source} is not a regular file")
    with source.open("rb") as file:
        empty = os.fstat(file.fileno()).st_size == 0
        mapped: Buffer = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return parse(mapped, dialect)
    except GGError as error:
        text = f"{source}: byte {error.offset:#x}: {error} [{error.code}]"
        raise type(error)(text, code=error.code, offset=error.offset) from None


def parse(buffer: Buffer, dialect: str = "v2") -> CGraph:
    """Read and check the bytes of a file."""
    return _Reader(buffer, DIALECTS[dialect]).read()


class _Reader:
    """Walks the records of a buffer and checks the rules in the order in which the importer in C does.

    `begin` is where the current record starts, `at` the first byte not read, `what` the record for messages.
    """

    def __init__(self, buffer: Buffer, dialect: Dialect) -> None:
        self.buffer = buffer
        self.dialect = dialect
        self.end = len(buffer)
        self.begin = self.at = 0
        self.what = ""
        self.records: list[Record] = []
        self.offsets: list[int] = []
        self.n_leafs = 0

    def _bad(self, code: str, at: int, message: str, kind: type[GGError] = FormatError) -> GGError:
        return kind(f"{self.what}: {message}" if self.what else message, code=code, offset=at)

    def read(self) -> CGraph:
        header = self._header()
        for k in range(self.n_leafs):
            self._leaf(k)
        for k in range(header["n_nodes"]):
            self._node(k)
        self._end(header["size_eval"])
        return CGraph(
            dialect=self.dialect.name,
            size_eval=header["size_eval"],
            leafs=tuple(self.records[: self.n_leafs]),
            nodes=tuple(self.records[self.n_leafs :]),
            offsets=tuple(self.offsets),
            buffer=self.buffer,
        )

    def _fields(self, layout: Layout, what: str) -> dict[str, Any]:
        """The next record's fields; advances past it."""
        if layout.nbytes > self.end - self.at:
            raise self._bad("Truncated", self.end, f"the file ends inside the {what}")
        self.begin = self.at
        values = iter(layout.format.unpack_from(self.buffer, self.at))
        self.at += layout.nbytes
        return {
            f.name: next(values) if f.n == 1 or f.kind == "char" else tuple(next(values) for _ in range(f.n))
            for f in layout.fields
        }

    def _header(self) -> dict[str, Any]:
        dialect, layout = self.dialect, self.dialect.header
        header = self._fields(layout, "header")
        if header["magic"] == int.from_bytes(MAGIC.to_bytes(4, "little"), "big"):
            raise self._bad("BadMagic", 0, "a big-endian file")
        if header["magic"] != MAGIC:
            raise self._bad("BadMagic", 0, f"not a ggml graph: magic is {header['magic']:08x}, expected {MAGIC:08x}")
        if header["version"] != dialect.version:
            message = f"version is {header['version']}, dialect {dialect.name} has {dialect.version}"
            raise self._bad("BadVersion", layout.offset("version"), message)
        self.n_leafs, n_nodes = header["n_leafs"], header["n_nodes"]
        if self.n_leafs * dialect.leaf.nbytes + n_nodes * dialect.node.nbytes > self.end - self.at:
            message = (
                f"{self.n_leafs} leafs and {n_nodes} nodes do not fit in the {self.end - self.at} bytes that follow"
            )
            raise self._bad("BadCount", layout.offset("n_leafs"), message)
        if self.n_leafs + n_nodes > MAX_TENSORS:
            message = f"{self.n_leafs + n_nodes} tensors, at most {MAX_TENSORS} are allowed"
            raise self._bad("TooManyTensors", layout.offset("n_leafs"), message, LimitError)
        return header

    def _end(self, size_eval: int) -> None:
        self.what = ""
        if self.at != self.end:
            raise self._bad("TrailingBytes", self.at, f"{self.end - self.at} bytes after the last tensor")
        needed = nodes_nbytes(self.records[self.n_leafs :])
        if self.dialect.eval_padded and size_eval < needed:
            message = f"size_eval is {size_eval}, but the nodes have {needed} bytes"
            raise self._bad("BadEvalSize", self.dialect.header.offset("size_eval"), message)

    def _leaf(self, k: int) -> None:
        self.what = f"leaf {k}"
        layout = self.dialect.leaf
        record = self._tensor(self._fields(layout, "record"), layout, f"leaf {k}")
        if record.op != "NONE":
            raise self._bad("BadLeaf", self.begin + layout.offset("op"), f"op is {record.op}, but a leaf has none")
        if record.is_param and self.dialect.param_nodes:
            raise self._bad("BadParam", self.begin + layout.offset("flags"), "a parameter among the leafs")
        self._take(record, layout)

    def _node(self, k: int) -> None:
        self.what = f"node {k}"
        layout = self.dialect.node
        fields = self._fields(layout, "record")
        record = self._tensor(fields, layout, f"node {k}")
        record = replace(record, src=self._src(fields["src"], record.op, self.begin + layout.offset("src")))
        if record.op == "NONE":
            self._check_param(record, layout)
            self._take(record, layout)
            return
        if record.op.startswith("MAP_"):  # their op_params are addresses of functions
            at = self.begin + layout.offset("op")
            raise self._bad("UnsupportedOp", at, "it calls code outside the file", UnsupportedError)
        if record.op in self.dialect.refused:
            at = self.begin + layout.offset("op")
            raise self._bad("UnsupportedOp", at, f"it is another op in dialect {self.dialect.name}", UnsupportedError)
        if record.is_param:
            raise self._bad("BadParam", self.begin + layout.offset("flags"), "computed, yet a parameter")
        variation = self.dialect.variations.get(record.op)
        self.records.append(record if variation is None else self._vary(record, variation, layout))
        self.offsets.append(-1)

    def _check_param(self, record: Record, layout: Layout) -> None:
        if not self.dialect.param_nodes:
            message = f"a parameter, of which dialect {self.dialect.name} stores no data"
            raise self._bad("NoParamData", self.begin, message, UnsupportedError)
        if not record.is_param:
            raise self._bad("BadParam", self.begin + layout.offset("flags"), "neither an op nor a parameter")
        if record.type != "F32":
            raise self._bad("BadParam", self.begin + layout.offset("type"), "a parameter that is not float32")
        if record.src:
            k = next(k for k, s in enumerate(record.src) if s >= 0)
            raise self._bad("BadParam", self.begin + layout.offset("src") + 4 * k, "a parameter with a source")

    def _take(self, record: Record, layout: Layout) -> None:
        """Append a tensor whose data come next."""
        for w, word in enumerate(WORDS.unpack(record.op_params)):
            if word:
                at = self.begin + layout.offset("op_params") + 4 * w
                raise self._bad("BadOpParams", at, f"op_params word {w} is set, but there is no op")
        nbytes = record.nbytes
        stored = self.dialect.data_nbytes(nbytes)
        if stored > self.end - self.at:
            message = f"{stored} bytes of data, but the file ends after {self.end - self.at}"
            raise self._bad("Truncated", self.at, message)
        self.offsets.append(self.at)
        self.records.append(replace(record, data=_chunks(self.buffer, self.at, nbytes)))
        self.at += stored

    def _tensor(self, fields: dict[str, Any], layout: Layout, what: str) -> Record:
        """What leafs and nodes have in common."""
        name = self._name(fields["name"], self.begin + layout.offset("name"))
        self.what = f"{what} {name!r}"
        element = self._type(fields["type"], self.begin + layout.offset("type"))
        op_params = fields.get("op_params", b"").ljust(N_OP_PARAMS, b"\0")
        op, unary = self._op(fields["op"], op_params, layout)
        flags = fields.get("flags", 0)
        if flags & ~ALL_FLAGS:
            message = f"flags are {flags:x}, of which {flags & ~ALL_FLAGS:x} are unknown"
            raise self._bad("BadFlags", self.begin + layout.offset("flags"), message)
        if op != "NONE" and layout.n("src"):
            self.what += f" ({unary or op})"
        ne = (fields["ne0"], fields["ne1"], fields["ne2"], fields["ne3"])
        nb = (fields["nb0"], fields["nb1"], fields["nb2"], fields["nb3"])
        self._sizes(ne, element, self.begin + layout.offset("ne0"))
        self._strides(nb, ne, element, op, self.begin + layout.offset("nb0"))
        if layout.n("n_dims"):
            self._n_dims(fields["n_dims"], ne, op, self.begin + layout.offset("n_dims"))
        tail = fields["name"].partition(b"\0")[2].rstrip(b"\0")
        op_params = bytes(4) + op_params[4:] if unary else op_params
        return Record(name, element.name, ne, nb, op, unary, flags, op_params, name_tail=tail)

    def _vary(self, record: Record, variation: Variation, layout: Layout) -> Record:
        """The record as the newest dialect would have it."""
        at = self.begin + layout.offset("src")
        for k in range(len(variation.src), len(record.src)):
            if record.src[k] >= 0:
                message = f"src[{k}] is set, the op takes {len(variation.src)} in dialect {self.dialect.name}"
                raise self._bad("BadArity", at + 4 * k, message)
        src = [*record.src, *[-1] * (len(variation.src) - len(record.src))]
        k = -1 if variation.scalar is None else variation.scalar
        if k >= 0 and src[k] >= 0 and _n_elements(self.records[src[k]]) != 1:
            raise self._bad("BadShape", at + 4 * k, f"src[{k}] has more than one element", ShapeError)
        stored = WORDS.unpack(record.op_params)
        if variation.words_in is not None:
            stored = self._words_in(src, variation.words_in, len(variation.words), at + 4 * variation.words_in)
        for w in range(len(variation.words), len(stored)):
            if stored[w]:
                at = self.begin + layout.offset("op_params") + 4 * w
                message = f"op_params word {w} is set, in dialect {self.dialect.name}"
                raise self._bad("UnsupportedOpParams", at, message, UnsupportedError)
        words = [variation.implied.get(w, 0) for w in range(len(stored))]
        for w, place in enumerate(variation.words):
            if place != NOTHING:
                words[place] = stored[w]
        word = meant_otherwise(variation, words, record.ne[0])
        if word is not None:
            at = self.begin + layout.offset("op")
            message = (
                f"with {words[word]:#x} for word {word} dialect {self.dialect.name} meant something else by the op"
            )
            raise self._bad("UnsupportedOpParams", at, message, UnsupportedError)
        placed = [-1] * len(src)
        for k, place in enumerate(variation.src):
            if place != NOTHING:
                placed[place] = src[k]
        while placed and placed[-1] < 0:
            placed.pop()
        return replace(record, op=variation.op or record.op, op_params=WORDS.pack(*words), src=tuple(placed))

    def _words_in(self, src: Sequence[int], k: int, n: int, at: int) -> tuple[int, ...]:
        """The words of an op that lie in source k, padded to what op_params hold."""
        if src[k] < 0:
            raise self._bad("BadArity", at, f"src[{k}] is missing, which holds the op's words")
        record = self.records[src[k]]
        if src[k] >= self.n_leafs or _n_elements(record) != n or record.nbytes != 4 * n:
            raise self._bad("BadOpParams", at, f"src[{k}] is no leaf of the op's {n} words")
        data = bytes(self.buffer[self.offsets[src[k]] :][: 4 * n])
        return WORDS.unpack(data.ljust(N_OP_PARAMS, b"\0"))

    def _n_dims(self, n_dims: int, ne: Sizes, op: str, at: int) -> None:
        """Leafs were made with so many dimensions; a node may have kept the number that its source had."""
        if not 1 <= n_dims <= 4:
            raise self._bad("BadSize", at, f"{n_dims} dimensions, not 1..4")
        for i in range(n_dims, 4):
            if op == "NONE" and ne[i] != 1:
                raise self._bad("BadSize", at, f"{n_dims} dimensions, but the size of dimension {i} is {ne[i]}")

    def _name(self, field: bytes, at: int) -> str:
        text, end, _ = field.partition(b"\0")  # stock ggml leaves the tail of an older name behind the NUL
        if not end:
            raise self._bad("BadName", at, "the name does not end in its field")
        if not text:
            raise self._bad("BadName", at, "the name is empty")
        name = text.decode(errors="surrogateescape")
        found = NOT_IN_NAMES.search(name)
        if found:
            is_text = not "\ud800" <= found[0] <= "\udfff"
            message = f"has the control character U+{ord(found[0]):04X}" if is_text else "is not UTF-8"
            raise self._bad("BadName", at + len(name[: found.start()].encode()), f"the name {message}")
        return name

    def _type(self, number: int, at: int) -> Type:
        element = self.dialect.type_of.get(number)
        if element is None:
            raise self._bad("BadType", at, f"type is {number}, which dialect {self.dialect.name} does not have")
        return element

    def _op(self, number: int, op_params: bytes, layout: Layout) -> tuple[str, str | None]:
        """The op, and which unary op it is."""
        dialect, unary = self.dialect, int.from_bytes(op_params[:4], "little")
        if number >= len(dialect.ops):
            message = f"op is {number}, which dialect {dialect.name} does not have"
            raise self._bad("BadOp", self.begin + layout.offset("op"), message)
        if not dialect.unary and dialect.ops[number] in UNARY:
            return "UNARY", dialect.ops[number]
        if dialect.ops[number] != "UNARY":
            return dialect.ops[number], None
        if unary >= len(dialect.unary):
            message = f"unary op is {unary}, which dialect {dialect.name} does not have"
            raise self._bad("BadOp", self.begin + layout.offset("op_params"), message)
        return "UNARY", dialect.unary[unary]

    def _sizes(self, ne: Sizes, element: Type, at: int) -> None:
        n = 1
        for i, size in enumerate(ne):
            if not 1 <= size <= MAX_NE:
                message = f"size {_signed(size)} of dimension {i} is not in 1..2^40"
                raise self._bad("BadSize", at + 16 * i, message)
            n *= size
        if n > MAX_ELEMENTS:
            raise self._bad("BadSize", at, "more than 2^48 elements")
        if ne[0] % element.block:
            raise self._bad("BadSize", at, f"rows of {ne[0]} are not whole blocks of {element.block}")

    def _strides(self, nb: Sizes, ne: Sizes, element: Type, op: str, at: int) -> None:
        dense = None if op in VIEWS else dense_strides(element, ne)
        for i, stride in enumerate(nb):
            if stride > MAX_STRIDE or stride % element.nbytes:
                message = f"stride of dimension {i} is {_signed(stride)}, not a multiple of {element.nbytes} in 0..2^50"
                raise self._bad("BadStride", at + 16 * i, message)
            if dense and stride != dense[i]:
                message = f"stride of dimension {i} is {stride}, expected {dense[i]}"
                raise self._bad("BadStride", at + 16 * i, message)

    def _src(self, src: tuple[int, ...], op: str, at: int) -> tuple[int, ...]:
        """Sources in this module's numbering, without absent ones at the end."""
        base = self.n_leafs if self.dialect.node_base is None else self.dialect.node_base
        numbers = []
        for k, s in enumerate(src):
            number = s - base + self.n_leafs if s >= base else s
            exists = -1 <= number < len(self.records) or (number == len(self.records) and may_be_itself(op, k))
            if not exists or (number >= self.n_leafs) != (s >= base):
                message = f"src[{k}] is {s}, which is none of the {len(self.records)} tensors before"
                raise self._bad("BadSource", at + 4 * k, message)
            numbers.append(number)
        while numbers and numbers[-1] < 0:
            numbers.pop()
        return tuple(numbers)


def _signed(number: int) -> int:
    """A u64 as the i64 that it may be meant as."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _chunks(buffer: Buffer, at: int, nbytes: int) -> Callable[[], Iterator[memoryview]]:
    def chunks() -> Iterator[memoryview]:
        view = memoryview(buffer)
        for begin in range(at, at + nbytes, CHUNK):
            yield view[begin : min(begin + CHUNK, at + nbytes)]

    return chunks
