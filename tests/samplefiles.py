"""Small valid graph files, made from the op table's samples: what malformed files are made of.

`one_op` is a file with one op on the operands of a sample, each float32 leaf a parameter, ending in a loss where the
op's result is float32. Used by test_malformed.py, test_readers.py and, as a program that fills a directory, by
`make fuzz`:

    python tests/samplefiles.py DIRECTORY
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from opcheck import build
from reference import SAMPLES, Sample

from ggmlgraph.cgraph import Record, dump
from ggmlgraph.core import CoreGraph
from ggmlgraph.dialect import DIALECTS, LOSS, OUTPUT
from ggmlgraph.errors import GGError, UnsupportedError
from ggmlgraph.optable import TABLE

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
    graph = build(sample, arrays, trained).graph
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


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, dialect, content in files():
        (directory / f"{dialect}_{name}.bin").write_bytes(content)
