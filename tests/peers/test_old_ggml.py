"""The ggml of 2023 beside ours: it writes the files that are kept, and computes each op as we do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import old_ggml
import pytest
import real_ggml
from opcheck import Call, build
from test_real_ggml import GELU_TABLE, OPS, TOLERANCES, records, samples

from ggmlgraph.core.levels import isa_levels
from ggmlgraph.errors import UnsupportedError
from ggmlgraph.graphfile import reader, writer
from ggmlgraph.graphfile.records import Record
from ggmlgraph.table.dialect import DIALECTS, OUTPUT, WRITTEN
from ggmlgraph.table.op import TABLE, Op

OLD = [name for name in DIALECTS if name not in WRITTEN]
REFUSED = {  # why an old ggml cannot be compared
    "flash_attn_ext": "the mask must be F16",
    "conv_transpose_1d": "the kernel must be F16",
    "conv_transpose_2d": "the kernel must be F16",
    "im2col": "the kernel must be F16",
    "get_rows_back": "it wants a third source that only has the result's shape",
}
HALF = {
    "silu",
    "silu_back",
    "gelu",
    "gelu_quick",
    "soft_max",
}  # exp and activations from tables of half-precision numbers


@pytest.fixture(params=OLD)
def dialect(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    with real_ggml.or_skip(f"ggml of dialect {name}"):
        old_ggml.program(name)
    return name


@pytest.mark.parametrize("graph", old_ggml.GRAPHS)
def test_it_writes_the_file_that_is_kept(graph: str, dialect: str, tmp_path: Path) -> None:
    file, result = old_ggml.make(dialect, graph, tmp_path)
    kept = old_ggml.KEPT / file.name
    if DIALECTS[dialect].data_unit == 1:
        assert file.read_bytes() == kept.read_bytes()
    else:  # the padding is whatever was in memory
        assert reader.read(file, dialect).records == reader.read(kept, dialect).records
    assert result.read_bytes() == kept.with_suffix(".f32").read_bytes()


def says(call: list[Record], dialect: str, path: Path) -> bool:
    """Whether the dialect can say a graph."""
    try:
        writer.write(path, call, [len(call) - 1], dialect)
    except UnsupportedError:
        return False
    return True


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_it_computes_each_op_as_we_do(op: Op, dialect: str, tmp_path: Path) -> None:
    if reason := REFUSED.get(op.name):
        pytest.skip(f"no such case: ggml of dialect {dialect}, {op.ggml}: {reason}")
    path = tmp_path / "graph.bin"
    calls: list[Call] = []
    everything: list[Record] = []
    for sample in samples(op, dialect):
        if sample.params.get("p0", 0) or sample.params.get("p1", 0):
            continue  # it pads nothing that it pools
        call = build(sample, sample.arrays())
        call.graph.set_name(call.graph.node(TABLE["cont"], [call.y], {}), "out", OUTPUT)
        if says(records(call, 0, ""), dialect, path):
            everything += records(call, len(everything), f"{len(calls)}.")
            calls.append(call)
    if not calls:
        pytest.skip(f"no such case: dialect {dialect} can say none of the calls of {op.ggml}")
    names = [f"{k}.out" for k in range(len(calls))]
    writer.write(path, everything, [[r.name for r in everything].index(n) for n in names], dialect)
    theirs = old_ggml.compute(dialect, path, names, tmp_path)
    for name, call in zip(names, calls, strict=True):
        program = call.program(isa_levels()[0], 1)
        program.run()
        values = call.result(program).ravel()
        others = theirs[name].view(values.dtype)
        finite = np.isfinite(values)
        assert np.array_equal(values[~finite], others[~finite])
        error = np.abs(values[finite] - others[finite]).max() / max(1.0, np.abs(values[finite]).max())
        assert error < (GELU_TABLE if op.name in HALF else TOLERANCES.get(op.name, 1e-5))
