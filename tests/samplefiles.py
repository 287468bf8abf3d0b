"""Small valid graph files, made from the op table's samples: what malformed files are made of.

`one_op` is a file with one op on the operands of a sample, each float32 leaf a parameter, ending in a loss where the
op's result is float32; `six` are larger. Used by test_malformed.py, test_readers.py and, as a program that fills two
directories, by `make fuzz`:

    python tests/samplefiles.py ONE_OP SIX
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import opcheck
from reference import SAMPLES, Sample

from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.errors import GGError, UnsupportedError
from ggmlgraph.graphfile import metadata
from ggmlgraph.graphfile.records import Record
from ggmlgraph.graphfile.writer import dump
from ggmlgraph.table.dialect import DIALECTS, INPUT, LOSS, OUTPUT, PARAM
from ggmlgraph.table.op import TABLE
from ggmlgraph.tracing.export import leaf as bytes_leaf

MAX_NBYTES = 3000


def records_of(graph: CoreGraph) -> list[Record]:
    """A graph's tensors as the writer takes them; ids stay."""
    records = []
    for i in range(len(graph)):
        t, op = graph.tensor(i), TABLE.get(graph.op(i))
        data = bytes(graph.leaf_bytes(i)) if op is None else None
        records.append(
            Record(
                name=graph.name(i) or f"node_{i}",
                type=graph.dtype(i).upper(),
                ne=tuple(t.ne),
                nb=tuple(t.nb),
                op="NONE" if op is None else str(op.ggml),
                unary=None if op is None else op.unary,
                flags=t.flags,
                op_params=b"" if op is None else b"".join(w.to_bytes(4, "little", signed=True) for w in t.op_params),
                src=tuple(t.src)[: t.n_src],
                data=None if data is None else lambda data=data: [data],  # type: ignore[misc]
            )
        )
    return records


def to_bytes(records: list[Record], roots: list[int], dialect: str = "v2") -> bytes:
    stream = io.BytesIO()
    dump(stream, records, roots, dialect)
    return stream.getvalue()


def one_op(sample: Sample, dialect: str = "v2") -> bytes:
    """A file with the op of a sample. Raises UnsupportedError where the dialect has no such op."""
    arrays = sample.arrays()
    trained = frozenset(k for k, a in enumerate(arrays) if a is not None and a.dtype == "float32")
    graph = opcheck.build(sample, arrays, trained).graph
    root = len(graph) - 1
    if graph.dtype(root) == "f32":
        root = graph.node(TABLE["sum"], [root], {})
        graph.set_name(root, "loss", LOSS | OUTPUT)
    records = records_of(graph)
    if any(r.op == "None" for r in records):
        raise UnsupportedError(f"ggml has no op {sample.op}")
    return to_bytes(records, [root], dialect)


def n_elements(sample: Sample) -> int:
    return sum(math.prod(o.shape) for o in sample.operands if o is not None) + math.prod(sample.shape or (0,))


def smallest() -> Iterator[tuple[str, Sample]]:
    """For each op that files have, its smallest samples: dense, strided, with every operand, with the fewest."""
    for name, samples in SAMPLES.items():
        if TABLE[name].ggml is None or TABLE[name].exact:
            continue
        ordered = sorted(samples, key=n_elements)
        kinds = {(o and o.layout, len([x for x in s.operands if x])): s for s in reversed(ordered) for o in s.operands}
        for k, sample in enumerate({id(s): s for s in kinds.values()}.values()):
            yield f"{name}{k}", sample


def files() -> Iterator[tuple[str, str, bytes]]:
    """(name, dialect, content) of every small file."""
    for dialect in DIALECTS:
        for name, sample in smallest():
            try:
                content = one_op(sample, dialect)
            except GGError:
                continue
            if len(content) <= MAX_NBYTES:
                yield name, dialect, content


# ---------------------------------------------------------------- six files of several ops


def build(dialect: str, make: Callable[[CoreGraph], Any], extra: tuple[Record, ...] = ()) -> bytes:
    graph = CoreGraph()
    make(graph)
    graph.set_name(len(graph) - 1, "y", OUTPUT | (LOSS if graph.shape(len(graph) - 1) == (1,) else 0))
    if not DIALECTS[dialect].param_nodes:
        records = [replace(r, flags=0) for r in records_of(graph)]
    else:
        records = records_of(graph)
    return to_bytes([*records, *extra], [len(graph) - 1], dialect)


def leaf(graph: CoreGraph, name: str, shape: tuple[int, ...], dtype: str = "f32", flags: int = 0) -> int:
    tensor_id = graph.leaf(dtype, shape, flags, name)
    if dtype == "f32":
        n = int(np.prod(shape))
        graph.leaf_bytes(tensor_id)[:] = np.linspace(-1, 1, n, dtype=np.float32).tobytes()
    return tensor_id


def node(graph: CoreGraph, op: str, *src: int, shape: tuple[int, ...] | None = None, **params: Any) -> int:
    defaults = {p.name: p.default for p in TABLE[op].params}
    strides = params.pop("strides", None)
    return graph.node(TABLE[op], src, defaults | params, shape, strides)


def mlp(g: CoreGraph) -> None:
    w, x = leaf(g, "w", (3, 4), flags=PARAM), leaf(g, "x", (2, 4), flags=INPUT)
    node(g, "sum", node(g, "silu", node(g, "mul_mat", w, x)))


def attention(g: CoreGraph) -> None:
    positions = leaf(g, "positions", (3,), "i32")
    x = node(g, "rope", leaf(g, "x", (3, 2, 4)), positions, -1, n_dims=4)
    scores = node(g, "mul_mat", node(g, "permute", x, axis0=0, axis1=2, axis2=1, axis3=3),
                  node(g, "permute", x, axis0=0, axis1=2, axis2=1, axis3=3))  # fmt: skip
    node(g, "soft_max", node(g, "diag_mask_inf", node(g, "scale", scores, s=0.5)), -1)


def norms(g: CoreGraph) -> None:
    x = node(g, "rms_norm", leaf(g, "x", (2, 4)), eps=1e-5)
    node(g, "norm", node(g, "mul", x, leaf(g, "gain", (4,))), eps=1e-5)


def views(g: CoreGraph) -> None:
    x = leaf(g, "x", (4, 6))
    part = node(g, "view", x, offset=8, shape=(3, 2), strides=(72, 72, 24, 4))
    again = node(g, "view", part, offset=4, shape=(2, 1), strides=(48, 48, 24, 4))
    node(g, "reshape", node(g, "cont", node(g, "transpose", again), shape=(1, 2)), shape=(2,))


def rows(g: CoreGraph) -> None:
    ids = leaf(g, "ids", (3,), "i32", INPUT)
    table = leaf(g, "table", (5, 4), flags=PARAM)
    leaf(g, "note", (16,), "i8")
    node(g, "repeat", node(g, "get_rows", table, ids), shape=(6, 4))


def six() -> Iterator[tuple[str, str, bytes]]:
    """(name, dialect, content) of six files: a dialect each, views, metadata, several types."""
    note = metadata.Metadata(model="none", inputs={"x": "tokens"}).encode()
    yield "v2", "v2", build("v2", mlp)
    yield "v2a", "v2a", build("v2a", attention)
    yield "v1", "v1", build("v1", norms)
    yield "view", "v2", build("v2", views)
    yield "metadata", "v2", build("v2", norms, (bytes_leaf(metadata.LEAF_NAME, note),))
    yield "types", "v2", build("v2", rows)


if __name__ == "__main__":
    for directory, made in ((Path(sys.argv[1]), files()), (Path(sys.argv[2]), six())):
        directory.mkdir(parents=True, exist_ok=True)
        for name, dialect, content in made:
            (directory / f"{dialect}_{name}.bin").write_bytes(content)
