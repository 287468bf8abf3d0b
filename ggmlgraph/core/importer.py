"""A graph file as a `CoreGraph`, through the importer in C, and what its metadata leaf adds: flags and named sizes.

`graphfile/reader.py` is the other reader, in Python, for what needs the file's own records. Used by `Runtime` and by
the commands that take graph files.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from typing import Any

from ggmlgraph.core import limits
from ggmlgraph.core.boundary import CoreGraph, exception, ffi, lib, new_error
from ggmlgraph.core.limits import Limits
from ggmlgraph.errors import FormatError
from ggmlgraph.graphfile import metadata
from ggmlgraph.graphfile.dim import evaluate
from ggmlgraph.graphfile.metadata import Metadata
from ggmlgraph.regular import map_regular
from ggmlgraph.table.dialect import PARAM


def import_file(
    path: str | os.PathLike[str], dialect: str = "auto", limits: Limits = limits.DEFAULT, *, mapped: bool = False
) -> CoreGraph:
    """Read a graph file through the C importer.

    mapped: weights are not copied but lie in the file as long as the graph is used, so it must stay as it is; what is
    written into them is the process's own.
    Raises FormatError, ShapeError, UnsupportedError or LimitError with path, byte offset and the broken rule's code.
    """
    content = map_regular(path, mmap.ACCESS_COPY if mapped else mmap.ACCESS_READ)
    gg_import = lib.gg_import_mapped if mapped else lib.gg_import
    with ffi.from_buffer("uint8_t[]", content) as view:
        err = new_error()
        handle = gg_import(view, len(view), dialect.encode(), _c_limits(limits), err)
    if handle == ffi.NULL:
        raise exception(err, f"{os.fspath(path)}: ")
    return CoreGraph(handle, content if isinstance(content, mmap.mmap) and mapped else None)


def identify(path: str | os.PathLike[str], limits: Limits = limits.DEFAULT) -> str:
    """The dialect of a file: the one in which all of it is valid. Errors as of `import_file`."""
    with ffi.from_buffer("uint8_t[]", map_regular(path)) as view:
        err = new_error()
        name = lib.gg_identify(view, len(view), _c_limits(limits), err)
    if name == ffi.NULL:
        raise exception(err, f"{os.fspath(path)}: ")
    return str(ffi.string(name).decode())


def _c_limits(limits: Limits) -> Any:
    return ffi.new("gg_limits *", (limits.n_tensors, limits.nbytes, limits.flops))


def read_metadata(graph: CoreGraph) -> Metadata:
    """The file's metadata leaf; an empty one for a file that has none."""
    tensor_id = graph.find(metadata.LEAF_NAME)
    return Metadata(model="") if tensor_id < 0 else metadata.decode(bytes(graph.leaf_bytes(tensor_id)).rstrip(b"\0"))


def named(graph: CoreGraph, names: Iterable[str]) -> list[int]:
    """Ids of the tensors that the metadata names. Raises FormatError."""
    try:
        return graph.ids(names)
    except FormatError as error:
        raise FormatError(f"metadata: {error}", code=error.code) from None


def apply_flags(graph: CoreGraph, meta: Metadata) -> None:
    """Mark inputs, parameters, loss and outputs as the metadata says, for a dialect whose records cannot."""
    for tensor_id, (name, flags) in zip(named(graph, meta.flags), meta.flags.items(), strict=True):
        if flags & PARAM and (graph.op(tensor_id) != "none" or graph.dtype(tensor_id) != "f32"):
            raise FormatError(f"metadata: {name!r} is no float32 leaf, so it cannot be a parameter")
        graph.set_name(tensor_id, name, flags)


def resize(graph: CoreGraph, meta: Metadata, sizes: dict[str, int]) -> CoreGraph:
    """The graph at other named sizes; without a change a graph that shares the memory of all leafs."""
    ids, ne, offsets = named(graph, meta.exprs), [], []
    for tensor_id, exprs in zip(ids, meta.exprs.values(), strict=True):
        old = list(graph.tensor(tensor_id).ne)
        ne += [old[i] if e is None else evaluate(e, sizes) for i, e in enumerate(exprs.ne)]
        offset = graph.view_offset(tensor_id)
        offsets.append(offset if exprs.offset is None else evaluate(exprs.offset, sizes, minimum=0))
    err = new_error()
    handle = lib.gg_resize(graph.handle, len(ids), ids, ne, offsets, err)
    if handle == ffi.NULL:
        at = ", ".join(f"{name} {value}" for name, value in sizes.items())
        raise exception(err, f"at {at}: {graph.name(err.node) if err.node >= 0 else ''} ")
    return graph.derived(handle)
