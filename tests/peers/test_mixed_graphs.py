"""Graphs that real ggml builds and exports: they load here, compute the same, and are written again byte for byte.

Gradients are compared with ggml's own where it has one; tests/test_ops.py compares those of every op with difference
quotients in float64.
"""

from __future__ import annotations

import contextlib
import io
import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_ggml
from mixed_graphs import GRAPHS

import ggmlgraph as gg
from ggmlgraph.execution.roles import Roles
from ggmlgraph.graphfile import reader, records, writer
from ggmlgraph.table.dialect import DIALECTS
from ggmlgraph.table.op import TABLE

CASES = [(name, dialect) for name, graph in GRAPHS.items() for dialect in graph.dialects]
SUPPORT = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "support.py"))
LOSSES = [(name, dialect) for name, dialect in CASES if GRAPHS[name].is_loss]


@pytest.fixture(autouse=True)
def needs_ggml(dialect: str) -> None:
    with real_ggml.or_skip(f"real ggml of dialect {dialect}"):
        real_ggml.library(dialect)


def tolerance(name: str, dialect: str) -> float:
    graph = GRAPHS[name]
    return max(graph.tolerance, graph.in_v1 if dialect == "v1" else 0)


def check_close(found: Any, expected: Any, tolerance: float, what: str) -> None:
    """Within `tolerance` of the largest value; whole numbers and what is not finite exactly."""
    found, expected = found.ravel(), expected.view(found.dtype)
    finite = np.isfinite(found)
    assert finite.any(), what
    np.testing.assert_array_equal(found[~finite], expected[~finite], what)
    error = np.abs(found[finite] - expected[finite]).max() / np.abs(found[finite]).max()
    print(f"{what}: relative error {error:.1e}")
    assert error <= (0 if found.dtype.kind == "i" else tolerance), what


def written(file: Path, dialect: str, outputs: list[str], slack: int = 0) -> bytes:
    """What our writer makes of the tensors of a file, put in order once more. `slack`: of size_eval."""
    graph = reader.read(file, dialect)
    roots = [[r.name for r in graph.records].index(name) for name in outputs]
    stream = io.BytesIO()
    writer.emit(stream, records.order(graph.records, roots, DIALECTS[dialect]), DIALECTS[dialect], slack)
    return stream.getvalue()


@pytest.mark.parametrize(("name", "dialect"), CASES)
def test_a_graph_that_ggml_exports_computes_what_ggml_computes(name: str, dialect: str, tmp_path: Path) -> None:
    theirs = real_ggml.make(dialect, name, tmp_path / "theirs.bin")
    with gg.Runtime(tmp_path / "theirs.bin", threads=2, dialect=dialect) as rt:
        ours = rt.forward(*theirs)
    for (output, expected), found in zip(theirs.items(), ours, strict=True):
        check_close(found, expected, tolerance(name, dialect), f"{name} {dialect} {output}")
    assert written(tmp_path / "theirs.bin", dialect, [*theirs]) == (tmp_path / "theirs.bin").read_bytes()


@pytest.mark.parametrize(("name", "dialect"), LOSSES)
def test_gradients_are_those_of_ggml(name: str, dialect: str, tmp_path: Path) -> None:
    real_ggml.make(dialect, name, tmp_path / "theirs.bin")
    theirs = real_ggml.differentiate(dialect, name, tmp_path)
    roles = Roles(params=tuple(theirs), loss="out0")
    with gg.Runtime(tmp_path / "theirs.bin", threads=2, dialect=dialect, roles=roles) as rt:
        rt.backward({})
        for param, expected in theirs.items():
            check_close(rt.gradient(param), expected, tolerance(name, dialect), f"{name} {dialect} {param}")


@pytest.mark.parametrize("dialect", real_ggml.DIALECTS)
@pytest.mark.parametrize(
    ("name", "output", "is_lost"),
    [("cache_of_keys_and_values", "out2", True), ("views_of_views", "out0", True),
     ("cast_to_its_own_type", "out0", False)],
)  # fmt: skip
def test_what_ggmls_own_importer_loses_is_kept_here(
    name: str, output: str, is_lost: bool, dialect: str, tmp_path: Path
) -> None:
    """Others do not see a CPY into a cache, and of two offsets only the second counts. A cast comes through."""
    theirs, path = real_ggml.make(dialect, name, tmp_path / "theirs.bin"), tmp_path / "roomy.bin"
    path.write_bytes(written(tmp_path / "theirs.bin", dialect, [*theirs], slack=1 << 20))
    imported: dict[str, Any] = {}
    with contextlib.suppress(RuntimeError):  # it may abort
        imported = real_ggml.compute(dialect, path, {}, [output])
    assert np.allclose(imported.get(output, np.nan), theirs[output]) != is_lost
    with gg.Runtime(path, threads=1, dialect=dialect) as rt:
        np.testing.assert_allclose(rt.forward(output)[0].ravel(), theirs[output], rtol=1e-5)


# ---------------------------------------------------------------- what they cover


def ops_of(names: Iterable[str], dialect: str, directory: Path) -> set[str]:
    """The ops in the files that ggml writes of some graphs; unary ones by their own names."""
    found: set[str] = set()
    for name in names:
        real_ggml.make(dialect, name, directory / "graph.bin")
        found |= {r.unary or r.op for r in reader.read(directory / "graph.bin", dialect).nodes}
    return found


@pytest.mark.parametrize("dialect", real_ggml.DIALECTS)
def test_the_graphs_have_every_op_that_the_dialect_and_we_have(dialect: str, tmp_path: Path) -> None:
    has = {*DIALECTS[dialect].ops, *DIALECTS[dialect].unary}
    ours = {op.unary or op.ggml for op in TABLE.values()} & has
    assert ours - ops_of((n for n, d in CASES if d == dialect), dialect, tmp_path) == set()


@pytest.mark.parametrize("dialect", real_ggml.DIALECTS)
def test_the_losses_have_every_op_that_ggml_differentiates(dialect: str, tmp_path: Path) -> None:
    theirs = SUPPORT["GGML_BACKWARD"] & {*DIALECTS[dialect].ops, *DIALECTS[dialect].unary}
    if dialect == "v1":
        theirs -= {"IM2COL", "POOL_2D"}  # whose derivatives came later
    assert theirs - ops_of((n for n, d in LOSSES if d == dialect), dialect, tmp_path) == set()
