"""Real ggml on graphs of halves and blocks: it computes them as we do, but for rounding that it does and we do not."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import real_ggml
from handmade import ENCODED, MASK, File, convolution, normal

import ggmlgraph as gg

# ggml adds products of halves in float32, but rounds both operands to halves; attention rounds its values as well.
HALF = 3e-3


class CopiesFile(File):
    """Casts as copies into leafs: ggml's importer reads memory that nobody wrote where a CPY is its own destination."""

    def cast(self, name: str, a: int, type: str) -> int:
        to = np.zeros(tuple(reversed(self.records[a].ne)))
        return self.cpy(name, a, self.leaf(f"{name} to", to, type=type))


def attention(f: File) -> int:
    q, k, v = (normal(1, 2, 32, 64, seed=s) for s in range(3))
    halves = [f.cast(n, f.leaf(f"{n}32", a), "F16") for n, a in (("k", k), ("v", v))]
    mask = f.leaf("mask", np.where(np.tri(32, dtype=bool), 0, -np.inf), type="F16")
    params = struct.pack("<3f", 64**-0.5, 0, 0)
    return f.node("y", "FLASH_ATTN_EXT", (1, 32, 2, 64), f.leaf("q", q), *halves, mask, op_params=params)


def soft_max(f: File) -> int:
    x, mask = f.leaf("x", normal(2, 6, 6)), f.leaf("mask", MASK, type="F16")
    return f.node("y", "SOFT_MAX", (2, 6, 6), x, mask, op_params=struct.pack("<2f", 0.5, 0))


def sums(f: File) -> int:
    x = f.cast("x", f.leaf("x32", normal(4, 8)), "F16")
    y = f.node("added", "ADD", (4, 8), x, f.leaf("b", normal(4, 8, seed=1)), type="F16")
    return f.cast("y", f.node("tiled", "REPEAT", (8, 8), y, type="F16"), "F32")


def rope(f: File) -> int:
    x = f.cast("x", f.leaf("x32", normal(5, 2, 16)), "F16")
    params = struct.pack("<5i6f", 0, 16, 2, 0, 0, 10000, 1, 0, 1, 0, 0)
    positions = f.leaf("positions", range(5), type="I32")
    return f.cast("y", f.node("turned", "ROPE", (5, 2, 16), x, positions, type="F16", op_params=params), "F32")


def transposed_convolution(f: File) -> int:
    kernel = f.leaf("kernel", normal(3, 4, 2, 2), type="F16")
    return f.node("y", "CONV_TRANSPOSE_2D", (1, 4, 10, 8), kernel, f.leaf("x", normal(1, 3, 5, 4, seed=1)),
                  op_params=struct.pack("<i", 2))  # fmt: skip


GRAPHS: dict[str, tuple[Callable[[File], int], float]] = {
    "attention": (attention, HALF), "soft_max": (soft_max, 2e-4), "sums": (sums, 0), "rope": (rope, 1e-3),
    "transposed_convolution": (transposed_convolution, HALF),
    "convolution": (lambda f: convolution(f, "F16"), HALF),
}  # fmt: skip


def compare(f: File, dialect: str, path: Path, tolerance: float) -> None:
    f.save(path, dialect)
    with real_ggml.or_skip(f"real ggml of dialect {dialect}"):
        theirs = real_ggml.compute(dialect, path, {}, ["y"])["y"]
    with gg.Runtime(path, threads=1, dialect=dialect) as rt:
        ours = rt.forward("y")[0].ravel()
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(ours).max()


@pytest.mark.parametrize("dialect", ["v1", "v2a"])
@pytest.mark.parametrize("name", GRAPHS)
def test_real_ggml_computes_graphs_of_halves_as_we_do(name: str, dialect: str, tmp_path: Path) -> None:
    make, tolerance = GRAPHS[name]
    f = CopiesFile()
    make(f)
    compare(f, dialect, tmp_path / "graph.bin", tolerance)


def test_results_in_place_that_ggml_exports_are_what_it_computed(tmp_path: Path) -> None:
    """Before its export: its own importer gives every result a memory of its own."""
    with real_ggml.or_skip("ggml-python"):
        made = real_ggml.run_script("inplace_ggml.py", tmp_path / "inplace.ggml")
    with np.load(f"{made}.npz") as theirs, gg.Runtime(made, threads=1, dialect="v1") as rt:
        for name, ours in zip(("early", "late", "again"), rt.forward("early", "late", "again"), strict=True):
            np.testing.assert_allclose(ours.ravel(), theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dialect", ["v1", "v2a"])
@pytest.mark.parametrize("type", ENCODED)
def test_real_ggml_casts_to_the_same_numbers(type: str, dialect: str, tmp_path: Path) -> None:
    f = CopiesFile()
    there = f.cast("there", f.leaf("x", normal(40, 64)), type)
    f.node("y", "GET_ROWS", (40, 64), there, f.leaf("ids", range(40), type="I32"))
    compare(f, dialect, tmp_path / "graph.bin", 0)
