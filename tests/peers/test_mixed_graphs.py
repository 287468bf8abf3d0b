"""Graphs that real ggml builds and exports: they load here, compute the same, and are written again byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_ggml
from mixed_graphs import GRAPHS

import ggmlgraph as gg
from ggmlgraph.rewrite import rewrite
from ggmlgraph.roles import Roles

CASES = [(name, dialect) for name, graph in GRAPHS.items() for dialect in graph.dialects]
LOSSES = [(name, dialect) for name, dialect in CASES if GRAPHS[name].is_loss]


@pytest.fixture(autouse=True)
def needs_ggml(dialect: str) -> None:
    try:
        real_ggml.library(dialect)
    except real_ggml.Unavailable as reason:
        pytest.skip(f"real ggml of dialect {dialect}: {reason}")


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


@pytest.mark.parametrize(("name", "dialect"), CASES)
def test_a_graph_that_ggml_exports_computes_what_ggml_computes(name: str, dialect: str, tmp_path: Path) -> None:
    theirs = real_ggml.make(dialect, name, tmp_path / "theirs.bin")
    with gg.Runtime(tmp_path / "theirs.bin", threads=2, dialect=dialect) as rt:
        ours = rt.forward(*theirs)
    for (output, expected), found in zip(theirs.items(), ours, strict=True):
        check_close(found, expected, tolerance(name, dialect), f"{name} {dialect} {output}")
    rewrite(tmp_path / "theirs.bin", tmp_path / "again.bin", dialect, dialect)
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "theirs.bin").read_bytes()


@pytest.mark.parametrize(("name", "dialect"), LOSSES)
def test_gradients_are_those_of_ggml(name: str, dialect: str, tmp_path: Path) -> None:
    real_ggml.make(dialect, name, tmp_path / "theirs.bin")
    theirs = real_ggml.differentiate(dialect, name, tmp_path)
    roles = Roles(params=tuple(theirs), loss="out0")
    with gg.Runtime(tmp_path / "theirs.bin", threads=2, dialect=dialect, roles=roles) as rt:
        rt.backward({})
        for param, expected in theirs.items():
            check_close(rt.gradient(param), expected, tolerance(name, dialect), f"{name} {dialect} {param}")
