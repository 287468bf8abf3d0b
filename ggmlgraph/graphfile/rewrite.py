"""A graph file in another dialect: the command `rewrite`.

Nothing is computed and nothing lost: weights are copied in chunks, names, sizes and op_params stay, and what is
trained, input, output and loss moves between the records and the metadata leaf where a dialect has flags in only one
of them. An op, type or parameter that the target cannot say is an UnsupportedError naming the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ggmlgraph.durable import replacing
from ggmlgraph.errors import FormatError, UnsupportedError
from ggmlgraph.graphfile import metadata, reader, writer
from ggmlgraph.graphfile.records import CGraph, Order, Record, leaf, nodes_nbytes, order, visit
from ggmlgraph.table.dialect import DIALECTS, OUTPUT, PARAM, Dialect

MAX_SLACK = 1 << 40  # of size_eval, which a file may claim at will


def rewrite(source: Path, target: Path, dialect: str, source_dialect: str) -> Order:
    """Write the graph of `source` to `target` in `dialect`; returns it as written."""
    graph, to = reader.read(source, source_dialect), DIALECTS[dialect]
    placed = _place(graph, move_flags(graph.records, to), to)
    slack = graph.size_eval - nodes_nbytes(graph.nodes)
    with replacing(target) as temporary, temporary.open("wb") as stream:
        writer.emit(stream, placed, to, min(max(slack, 0), MAX_SLACK))
    return placed


def move_flags(records: Sequence[Record], to: Dialect) -> list[Record]:
    """The records with their flags; where `to` has none in records, the metadata leaf has them, a new one at need."""
    first: dict[str, int] = {}
    for i, record in enumerate(records):
        first.setdefault(record.name, i)
    at = first.get(metadata.LEAF_NAME)
    text = metadata.Metadata(model="").encode() if at is None else _text(records[at])
    flagged = list(records)
    for name, flags in metadata.decode(text).flags.items():
        if name not in first:
            raise FormatError(f"metadata: the graph has no tensor {name!r}")
        flagged[first[name]] = replace(flagged[first[name]], flags=flagged[first[name]].flags | flags)
    flags_by_name = {} if to.has_flags else _by_name(flagged, first)
    if at is not None:
        flagged[at] = leaf(metadata.LEAF_NAME, metadata.with_flags(text, flags_by_name))
    elif flags_by_name:
        flagged.append(leaf(metadata.LEAF_NAME, metadata.with_flags(text, flags_by_name)))
    return flagged


def _by_name(records: Sequence[Record], first: dict[str, int]) -> dict[str, int]:
    flags = {}
    for i, record in enumerate(records):
        if record.flags and first[record.name] != i:
            raise UnsupportedError(f"two tensors are named {record.name!r}, so metadata cannot say which has flags")
        if record.flags:
            flags[record.name] = record.flags
    return dict(sorted(flags.items()))


def _text(record: Record) -> bytes:
    return b"".join(record.data() if record.data else []).rstrip(b"\0")


def _place(graph: CGraph, records: Sequence[Record], to: Dialect) -> Order:
    """The file's own order, unless parameters change between leafs and nodes: then ggml's if that leaves the computed
    tensors in theirs, which decides what a CPY changes for whom."""
    if to.param_nodes == DIALECTS[graph.dialect].param_nodes and len(records) == len(graph.records):
        n_leafs = len(graph.leafs)
        return Order(tuple(records[:n_leafs]), tuple(records[n_leafs:]))
    used = {s for i, r in enumerate(records) for s in r.src if s != i}
    nodes = [i for i, r in enumerate(records) if r.op != "NONE"]
    roots = [i for i in nodes if records[i].flags & OUTPUT or i not in used]
    unused = [i for i, r in enumerate(records) if r.op == "NONE" and r.flags & PARAM and i not in used]
    visited = [i for i in visit(records, roots) if records[i].op != "NONE"]
    return order(records, [*(roots if visited == nodes else nodes), *unused], to)
