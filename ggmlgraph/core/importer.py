"""A graph file as a `CoreGraph`, through the importer in C, and what its metadata leaf adds: flags and named sizes.

`graphfile/reader.py` is the other reader, in Python, for what needs the file's own records. Used by `Runtime` and by
the commands that take graph files.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache, partial
from typing import Any

from ggmlgraph.core import limits, passes
from ggmlgraph.core.boundary import call, ffi, lib
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.limits import Limits
from ggmlgraph.errors import FormatError, GGError
from ggmlgraph.files.regular import map_regular
from ggmlgraph.graphfile import lowrank, metadata
from ggmlgraph.graphfile.dim import evaluate
from ggmlgraph.graphfile.metadata import Metadata, Number, SizeExpressions
from ggmlgraph.table.dialect import INPUT, LOSS, PARAM
from ggmlgraph.table.op import TABLE

INPUTS = {  # by what fills them: their type, how many axes they have at most
    "tokens": ("i32", 2), "targets": ("i32", 2), "positions": ("i32", 1), "positions_f32": ("f32", 1),
    "loss_weights": ("f32", 4),
}  # fmt: skip


def import_file(
    path: str | os.PathLike[str], dialect: str = "auto", limits: Limits = limits.DEFAULT, *, mapped: bool = False
) -> CoreGraph:
    """Read a graph file through the C importer.

    mapped: weights are not copied but lie in the file as long as the graph is used, so it must stay as it is; what is
    written into them is the process's own.
    Raises FormatError, ShapeError, UnsupportedError or LimitError with path, byte offset and the broken rule's code.
    """
    content = map_regular(path, mmap.ACCESS_COPY if mapped else mmap.ACCESS_READ)
    return _import(content, dialect, limits, f"{os.fspath(path)}: ", content if mapped else None)


def import_bytes(content: bytes, dialect: str = "auto", limits: Limits = limits.DEFAULT) -> CoreGraph:
    """The same for a file's content."""
    return _import(content, dialect, limits, "", None)


def _import(
    content: mmap.mmap | bytes, dialect: str, limits: Limits, prefix: str, mapped: mmap.mmap | bytes | None
) -> CoreGraph:
    gg_import = lib.gg_import if mapped is None else lib.gg_import_mapped
    with ffi.from_buffer("uint8_t[]", content) as view:
        arguments = (view, len(view), dialect.encode(), _c_limits(limits))
        handle = call(gg_import, *arguments, where=lambda _: prefix)
    return CoreGraph(handle, mapped if isinstance(mapped, mmap.mmap) else None)


def identify(path: str | os.PathLike[str], limits: Limits = limits.DEFAULT) -> str:
    """The dialect of a file: the one in which all of it is valid. Errors as of `import_file`."""
    return identify_bytes(map_regular(path), limits, f"{os.fspath(path)}: ")


def identify_bytes(content: mmap.mmap | bytes, limits: Limits = limits.DEFAULT, prefix: str = "") -> str:
    """The same for a file's content; errors begin with `prefix`."""
    with ffi.from_buffer("uint8_t[]", content) as view:
        name = call(lib.gg_identify, view, len(view), _c_limits(limits), where=lambda _: prefix)
    return str(ffi.string(name).decode())


def _c_limits(limits: Limits) -> Any:
    return ffi.new("gg_limits *", (limits.n_tensors, limits.nbytes, limits.flops))


def read_metadata(graph: CoreGraph, path: str | os.PathLike[str] | None = None) -> Metadata:
    """The file's metadata leaf, checked by the graph; an empty one for a file that has none. path: for messages.

    Raises FormatError (BadMetadata, AmbiguousName), UnsupportedError.
    """
    try:
        tensor_id = graph.find(metadata.LEAF_NAME)
        if tensor_id < 0:
            return Metadata(model="")
        if graph.op(tensor_id) != "none":
            raise metadata.fault("they are computed")
        meta = metadata.decode(bytes(graph.leaf_bytes(tensor_id)).rstrip(b"\0"))
        check_metadata(graph, meta)
    except GGError as error:
        where = "" if path is None else f"{os.fspath(path)}: "
        raise type(error)(f"{where}{error}", code=error.code) from None
    return meta


def named(graph: CoreGraph, names: Iterable[str]) -> list[int]:
    """Ids of the tensors that the metadata names. Raises FormatError."""
    try:
        return graph.ids(names)
    except FormatError as error:
        if error.code == "AmbiguousName":
            raise FormatError(f"metadata: {error}", code=error.code) from None
        raise metadata.fault(str(error)) from None


def apply_flags(graph: CoreGraph, meta: Metadata) -> None:
    """Mark inputs, parameters, loss and outputs as the metadata says, for a dialect whose records cannot."""
    for tensor_id, (name, flags) in zip(named(graph, meta.flags), meta.flags.items(), strict=True):
        graph.set_name(tensor_id, name, flags)


# ---------------------------------------------------------------- metadata and graph


def check_metadata(graph: CoreGraph, meta: Metadata) -> None:
    """Raise FormatError unless the tensors that the metadata name are there and are what they are said to be."""
    names = list(dict.fromkeys((*meta.flags, *meta.inputs, *meta.ranks, *meta.exprs, *meta.exact, *meta.dropout)))
    ids = dict(zip(names, named(graph, names), strict=True))

    @cache
    def value(expr: str) -> int:
        try:
            return evaluate(expr, meta.sizes, minimum=0)
        except FormatError as error:
            raise metadata.fault(f"exprs: {error}") from None

    for name, flags in meta.flags.items():
        _check_flags(graph, ids[name], flags)
    for name, feed in meta.inputs.items():
        _check_input(graph, ids[name], feed, meta.flags.get(name, 0))
    for name, rank in meta.ranks.items():
        if len(shape := graph.shape(ids[name])) > rank:
            raise metadata.fault(f"ranks: {name!r} has the shape {list(shape)}, not {rank} axes")
    for name, exprs in meta.exprs.items():
        _check_sizes(graph, ids[name], exprs, meta.flags.get(name, 0), meta.sizes, value)
    for name, op in meta.exact.items():
        row = TABLE.get(graph.op(ids[name]))
        if row is None or (row.ggml, row.unary) != (TABLE[op].ggml, TABLE[op].unary):
            raise metadata.fault(f"exact: {name!r} is {graph.op(ids[name])}, of which {op} is no form")
    for name in meta.dropout:
        _check_dropout(graph, ids[name])
    for name, adapter in meta.finetuned.adapters.items() if meta.finetuned else ():
        _check_adapter(graph, name, adapter.rank)


def _check_adapter(graph: CoreGraph, weight: str, rank: int) -> None:
    """Its factors must fit the weight, as a product's or as a table's."""
    shapes = [graph.shape(i, 2) for i in named(graph, (weight, *lowrank.names(weight)))]
    rows, *_, columns = shapes[0]
    fitting = [lowrank.shapes(lowrank.Weight(weight, kind, (rows, columns), ""), rank) for kind in lowrank.ALL_KINDS]
    if tuple(shapes[1:]) not in fitting:
        raise metadata.fault(
            f"finetuned: {weight!r} is {list(shapes[0])}; no adapter of rank {rank} beside it has "
            f"the shapes {list(shapes[1])} and {list(shapes[2])}"
        )


def _check_flags(graph: CoreGraph, tensor_id: int, flags: int) -> None:
    name, is_leaf, dtype = graph.name(tensor_id), graph.op(tensor_id) == "none", graph.dtype(tensor_id)
    if flags & PARAM and not (is_leaf and dtype == "f32" and not flags & INPUT):
        raise metadata.fault(f"flags: {name!r} is no float32 leaf, so it cannot be a parameter")
    if flags & INPUT and not is_leaf:
        raise metadata.fault(f"flags: {name!r} is computed, so it cannot be an input")
    if flags & LOSS and (is_leaf or dtype != "f32" or graph.shape(tensor_id) != (1,)):
        raise metadata.fault(f"flags: {name!r} is no computed float32 number, so it cannot be the loss")


def _check_dropout(graph: CoreGraph, tensor_id: int) -> None:
    """Stock ggml must compute what evaluation does."""
    source = graph.src(tensor_id)[0] if graph.op(tensor_id) == "reshape" else -1
    if source < 0 or graph.dtype(source) != "f32" or graph.shape(source, 4) != graph.shape(tensor_id, 4):
        raise metadata.fault(f"dropout: {graph.name(tensor_id)!r} is no float32 reshape to the same shape")


def _check_input(graph: CoreGraph, tensor_id: int, feed: str, flags: int) -> None:
    name, dtype, shape = graph.name(tensor_id), graph.dtype(tensor_id), graph.shape(tensor_id)
    if graph.op(tensor_id) != "none" or not (graph.tensor(tensor_id).flags | flags) & INPUT:
        raise metadata.fault(f"inputs: {name!r} is no input of the graph")
    wanted, axes = INPUTS[feed]
    if dtype != wanted or len(shape) > axes:
        what = f"{dtype}{list(shape)}"
        raise metadata.fault(f"inputs: {name!r} is {what}; {feed} are {wanted} with at most {axes} axes")


def _check_sizes(
    graph: CoreGraph,
    tensor_id: int,
    exprs: SizeExpressions,
    flags: int,
    sizes: Mapping[str, int],
    value: Callable[[str], int],
) -> None:
    """The expressions must be of a tensor that can be re-sized, and give the sizes that it has in the file."""
    name, t, op = graph.name(tensor_id), graph.tensor(tensor_id), TABLE.get(graph.op(tensor_id))
    if exprs.s is not None:
        _check_number(graph, tensor_id, exprs.s, sizes)
    is_free = (op.sized or op is TABLE["scale"] or _counts(graph, tensor_id)) if op else (t.flags | flags) & INPUT
    if not is_free:
        raise metadata.fault(f"exprs: the size of {name!r} is not free: it is {op.name if op else 'no input'}")
    for expr, n in zip(exprs.ne, t.ne, strict=True):
        if expr is not None and value(expr) != n:
            raise metadata.fault(f"exprs: a size of {name!r} is {n}, {expr!r} is {value(expr)}")
    is_view = op is TABLE["view"]
    if exprs.offset is not None and not (is_view and value(exprs.offset) == graph.view_offset(tensor_id)):
        raise metadata.fault(f"exprs: {name!r} is no view at {exprs.offset!r}")


def _counts(graph: CoreGraph, tensor_id: int) -> bool:
    """Whether a node is 0, 1, 2, ...: an arange that stops at its size."""
    words = [_word(x) for x in (0.0, graph.shape(tensor_id)[0], 1.0)]
    return graph.op(tensor_id) == "arange" and graph.op_params(tensor_id)[:3] == words


def _check_number(graph: CoreGraph, tensor_id: int, number: Number, sizes: Mapping[str, int]) -> None:
    name = graph.name(tensor_id)
    if graph.op(tensor_id) != "scale" or not number.powers.keys() <= sizes.keys():
        raise metadata.fault(f"exprs: {name!r} is no scale by a number of {' and '.join(sizes)}")
    if _word(number.at(sizes)) != graph.tensor(tensor_id).op_params[0]:
        raise metadata.fault(f"exprs: {name!r} does not multiply by {number.at(sizes)}")


def _word(value: float) -> int:
    """The word of op_params that holds a float32; infinite beyond the largest."""
    with suppress(OverflowError):
        return int(struct.unpack("<i", struct.pack("<f", value))[0])
    return int(struct.unpack("<i", struct.pack("<f", math.copysign(math.inf, value)))[0])


def resize(graph: CoreGraph, meta: Metadata, sizes: Mapping[str, int]) -> CoreGraph:
    """The graph at other named sizes; without a change a graph that shares the memory of all leafs."""
    return resized(graph, dict(zip(named(graph, meta.exprs), meta.exprs.values(), strict=True)), sizes)


def resized(graph: CoreGraph, exprs: Mapping[int, SizeExpressions], sizes: Mapping[str, int]) -> CoreGraph:
    """The graph at other sizes, by expressions of its tensors' ids. Raises what the expressions or shape rules say."""
    ids, ne, words = list(exprs), [], []
    size, offset = cache(partial(evaluate, sizes=sizes)), cache(partial(evaluate, sizes=sizes, minimum=0))
    for tensor_id, each in exprs.items():
        old, _ = graph.file_layout(tensor_id)
        ne += [old[i] if e is None else size(e) for i, e in enumerate(each.ne)]
        low, high = graph.op_params(tensor_id)[:2]
        low = low if each.s is None else _word(each.s.at(sizes))
        if graph.op(tensor_id) == "arange" and each.ne[0] is not None:
            high = _word(size(each.ne[0]))  # where it stops
        words.append(low & 0xFFFFFFFF | high << 32 if each.offset is None else offset(each.offset))
    at = ", ".join(f"{name} {value}" for name, value in sizes.items())
    where = lambda node: f"at {at}: {graph.name(node) if node >= 0 else ''} "  # noqa: E731
    return passes.resize(graph, ids, ne, words, where)
