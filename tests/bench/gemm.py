"""The products of a training step, one at a time: ours at every ISA level beside torch's and numpy's in the same run.

y = x w^T is the forward product, dx = dy w and dw = dy^T x its gradients; x has T rows, w is (n, k). The three
libraries take turns in one process, with a rest between them for their threads to fall asleep.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from report import paired_ratio, save, show

from ggmlgraph.core import CoreGraph, isa_levels, peak_flops
from ggmlgraph.dialect import OUTPUT
from ggmlgraph.optable import TABLE
from ggmlgraph.program import Program

T = 1024  # rows: tokens of a batch
SHAPES = [(256, 256), (768, 256), (256, 768), (32000, 256),
          (768, 768), (2304, 768), (2048, 768), (768, 2048), (32000, 768)]  # fmt: skip
FORMS = ("y", "dx", "dw")
REST = 0.2  # seconds; OpenBLAS's threads spin for more than 0.1 after a call and would slow down whoever is next
LEAST = 0.02  # seconds of repeated calls per measurement


def operands(form: str, n: int, k: int) -> list[Any]:
    """The two factors as they lie in memory."""
    rng = np.random.default_rng(0)
    x, w, dy = (rng.standard_normal(shape, np.float32) for shape in ((T, k), (n, k), (T, n)))
    return {"y": [w, x], "dx": [w, dy], "dw": [dy, x]}[form]


def ours(form: str, arrays: list[Any], isa: str, threads: int) -> Callable[[], object]:
    """The product as the runtime does it in a graph of a single node."""
    graph = CoreGraph()
    a, b = (graph.leaf("f32", array.shape, 0, name) for array, name in zip(arrays, "ab", strict=True))
    for leaf, array in ((a, arrays[0]), (b, arrays[1])):
        graph.leaf_bytes(leaf)[:] = array.tobytes()
    if form == "dw":
        y = graph.node(TABLE["mul_mat_back"], [a, b], {}, (arrays[0].shape[1], arrays[1].shape[1]))
    else:
        a = graph.node(TABLE["transpose"], [a], {}) if form == "dx" else a
        y = graph.node(TABLE["mul_mat"], [a, b], {"prec": 0})
    graph.set_name(y, "y", OUTPUT)
    return Program(graph, isa, threads).run


def theirs(form: str, arrays: list[Any], product: Callable[..., object], out: Any) -> Callable[[], object]:
    """The product as numpy or torch writes it."""
    a, b = arrays
    factors = {"y": (b, a.T), "dx": (b, a), "dw": (a.T, b)}[form]
    return lambda: product(*factors, out=out)


def contenders(form: str, n: int, k: int, threads: int) -> dict[str, Callable[[], object]]:
    """Who multiplies, by name."""
    arrays = operands(form, n, k)
    out = np.empty({"y": (T, n), "dx": (T, k), "dw": (n, k)}[form], np.float32)
    works = {isa: ours(form, arrays, isa, threads) for isa in isa_levels()}
    works["numpy"] = theirs(form, arrays, np.matmul, out)
    try:
        import torch
    except ImportError:
        return works
    torch.set_num_threads(threads)
    works["torch"] = theirs(form, [torch.from_numpy(array) for array in arrays], torch.mm, torch.from_numpy(out))
    return works


def rate(work: Callable[[], object], flops: float) -> float:
    """GFLOP/s of calls for at least LEAST seconds, after one that wakes the threads."""
    time.sleep(REST)
    work()
    start, n = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < LEAST or n == 0:
        work()
        n += 1
    return n * flops / elapsed / 1e9


def case(form: str, n: int, k: int, threads: int, rounds: int) -> dict[str, Any]:
    """GFLOP/s of everybody, taken in turns, with the peak beside."""
    works = contenders(form, n, k, threads)
    rates: dict[str, list[float]] = {"peak": [], **{name: [] for name in works}}
    for _ in range(rounds):
        rates["peak"].append(peak_flops(None, threads) / 1e9)
        for name, work in works.items():
            rates[name].append(rate(work, 2.0 * T * n * k))
    return {"form": form, "n": n, "k": k, "gflops": rates}


def main(out: Path, threads: int, rounds: int) -> None:
    """Measure, print, save."""
    cases = [case(form, n, k, threads, rounds) for n, k in SHAPES for form in FORMS]
    names = [name for name in cases[0]["gflops"] if name != "peak"]
    best, peers = isa_levels()[0], [name for name in names if name in ("numpy", "torch")]
    rows = []
    for c in cases:
        rates = c["gflops"]
        share = median(r / p for r, p in zip(rates[best], rates["peak"], strict=True))
        ratios = [paired_ratio(rates[best], rates[peer]) for peer in peers]
        rows.append((f"{c['form']:<3}{c['n']}x{c['k']}", *(median(rates[name]) for name in names), share, *ratios))
    head = [*names, "of peak", *(f"x {peer}" for peer in peers)]
    show(f"Products with {T} rows, GFLOP/s, {threads} threads; the last columns are {best}'s", ["product", *head], rows)
    save(out, "gemm", threads, cases)
