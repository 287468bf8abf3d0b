"""Records become a graph file, in a dialect's bytes.

`write` serves `Graph.save` and `convert`; `emit`, which takes records as another program ordered and named them, serves
`rewrite`. Weights are streamed, so a file of any size takes little memory.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ggmlgraph.durable import WriteBehind, replacing
from ggmlgraph.errors import UNPRINTABLE, UnsupportedError, UsageError
from ggmlgraph.graphfile.records import (
    CHUNK,
    LEAF_UNIT,
    N_OP_PARAMS,
    WORDS,
    Order,
    Record,
    dense_strides,
    meant_otherwise,
    nodes_nbytes,
    order,
)
from ggmlgraph.table.dialect import DIALECTS, MAGIC, NOTHING, TYPES, Dialect, Layout, Variation

N_THREADS = 64  # stock ggml's scratch memory is sized for this many


def write(
    path: str | os.PathLike[str],
    records: Sequence[Record],
    roots: Sequence[int],
    dialect: str = "v2",
    size_eval_slack: int | None = None,
    meanwhile: Callable[[Path], object] | None = None,
) -> None:
    """Write a file at once or not at all. meanwhile: see `replacing`."""
    with replacing(Path(path), meanwhile) as temporary, io.BufferedWriter(WriteBehind(temporary)) as stream:
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
        return 4 * (a.n_elements + b.n_elements)
    converted = 0 if a.type == "F32" else 4 * b.n_elements
    lists = 8 * a.ne[2] * (1 + b.ne[2]) if node.op == "MUL_MAT_ID" else 0
    return 2 * converted + lists


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
    if not record.name or UNPRINTABLE.search(record.name) or len(record.name.encode()) >= layout.n("name"):
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
