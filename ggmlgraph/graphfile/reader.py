"""A graph file becomes records: the second, independent reader, beside the importer in C (runtime/src/import.c).

It checks container, tensors and sources of an untrusted file, in the importer's order and by its codes, and does not
derive shapes again, which C does. The runtime never calls it; it serves what needs the file's own records: `rewrite`,
`trained`, and the tests that compare the two readers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ggmlgraph.errors import UNPRINTABLE, FormatError, GGError, LimitError, ShapeError, UnsupportedError
from ggmlgraph.files.regular import map_regular
from ggmlgraph.graphfile.records import (
    CHUNK,
    N_OP_PARAMS,
    WORDS,
    Buffer,
    CGraph,
    Record,
    Sizes,
    dense_strides,
    may_be_itself,
    meant_otherwise,
    nodes_nbytes,
)
from ggmlgraph.table.dialect import ALL_FLAGS, DIALECTS, MAGIC, NOTHING, V2, Dialect, Layout, Type, Variation

MAX_TENSORS = 1 << 20
MAX_NE = 1 << 40
MAX_ELEMENTS = 1 << 48
MAX_STRIDE = 1 << 50
UNARY = frozenset(V2.unary)
VIEWS = frozenset(("VIEW", "PERMUTE", "TRANSPOSE", "CPY"))  # ops whose strides need not be contiguous


def read(path: str | os.PathLike[str], dialect: str = "v2") -> CGraph:
    """Read and check a file; its data are mapped, not loaded."""
    content = map_regular(path)
    try:
        return parse(content, dialect)
    except GGError as error:
        text = f"{os.fspath(path)}: byte {error.offset:#x}: {error} [{error.code}]"
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
        if k >= 0 and src[k] >= 0 and self.records[src[k]].n_elements != 1:
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
        if src[k] >= self.n_leafs or record.n_elements != n or record.nbytes != 4 * n:
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
        found = UNPRINTABLE.search(name)
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
