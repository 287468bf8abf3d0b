"""The products of a training step, one at a time, in float32 and bf16: ours at every ISA level beside torch's and
numpy's in the same run.

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
from report import paired_ratio, save, seconds_of, show

from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.levels import isa_levels, peak_flops
from ggmlgraph.core.program import Pool, Program
from ggmlgraph.table.dialect import OUTPUT
from ggmlgraph.table.op import TABLE

T = 1024  # rows: tokens of a batch
SHAPES = [(256, 256), (768, 256), (256, 768), (32000, 256),
          (768, 768), (2304, 768), (2048, 768), (768, 2048), (32000, 768)]  # fmt: skip
FORMS = ("y", "dx", "dw")
REST = 0.2  # seconds; OpenBLAS's threads spin for more than 0.1 after a call and would slow down whoever is next
LEAST = 0.02  # seconds of repeated calls per measurement
SLOW = 1.0  # seconds: what takes longer is measured once, as torch's bf16 without an instruction for it


def operands(form: str, n: int, k: int) -> list[Any]:
    """The two factors as they lie in memory."""
    rng = np.random.default_rng(0)
    x, w, dy = (rng.standard_normal(shape, np.float32) for shape in ((T, k), (n, k), (T, n)))
    return {"y": [w, x], "dx": [w, dy], "dw": [dy, x]}[form]


def ours(form: str, arrays: list[Any], isa: str, threads: int, precision: str) -> Callable[[], object]:
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
    return Program(graph, Pool(threads), isa, precision).run


def theirs(form: str, arrays: list[Any], product: Callable[..., object], out: Any) -> Callable[[], object]:
    """The product as numpy or torch writes it."""
    a, b = arrays
    factors = {"y": (b, a.T), "dx": (b, a), "dw": (a.T, b)}[form]
    return lambda: product(*factors, out=out)


def contenders(form: str, n: int, k: int, threads: int) -> dict[str, Callable[[], object]]:
    """Who multiplies, by name."""
    arrays = operands(form, n, k)
    out = np.empty({"y": (T, n), "dx": (T, k), "dw": (n, k)}[form], np.float32)
    levels = isa_levels()
    works = {isa: ours(form, arrays, isa, threads, "float32") for isa in levels}
    works["numpy"] = theirs(form, arrays, np.matmul, out)
    works |= {f"{isa} bf16": ours(form, arrays, isa, threads, "bf16") for isa in levels}
    try:
        import torch
    except ImportError:
        return works
    torch.set_num_threads(threads)
    tensors, result = [torch.from_numpy(array) for array in arrays], torch.from_numpy(out)
    works["torch"] = theirs(form, tensors, torch.mm, result)
    works["torch bf16"] = theirs(form, [t.bfloat16() for t in tensors], torch.mm, result.bfloat16())
    return works


def rate(work: Callable[[], object], flops: float) -> float:
    """GFLOP/s of calls for at least LEAST seconds, after one that wakes the threads."""
    time.sleep(REST)
    once = seconds_of(work)
    if once > SLOW:
        return flops / once / 1e9
    start, n = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < LEAST or n == 0:
        work()
        n += 1
    return n * flops / elapsed / 1e9


def case(form: str, n: int, k: int, threads: int, rounds: int) -> dict[str, Any]:
    """GFLOP/s of everybody, taken in turns, with the peaks beside."""
    works, flops = contenders(form, n, k, threads), 2.0 * T * n * k
    rates: dict[str, list[float]] = {name: [] for name in ("peak", "peak bf16", *works)}
    for _ in range(rounds):
        rates["peak"].append(peak_flops(None, threads) / 1e9)
        rates["peak bf16"].append(peak_flops(None, threads, "bf16") / 1e9)
        for name, work in works.items():
            known = rates[name]
            known.append(known[-1] if known and flops / known[-1] / 1e9 > SLOW else rate(work, flops))
    return {"form": form, "n": n, "k": k, "gflops": rates}


def table(cases: list[dict[str, Any]], suffix: str) -> None:
    """Everybody's medians in one precision, and the best level's beside the others'."""
    names = [name for name in cases[0]["gflops"] if name.endswith(" bf16") == bool(suffix) and "peak" not in name]
    best = isa_levels()[0] + suffix
    peers = [name for name in names if name.removesuffix(suffix) in ("numpy", "torch")]
    rows = []
    for c in cases:
        rates = c["gflops"]
        ratios = [paired_ratio(rates[best], rates[other]) for other in (f"peak{suffix}", *peers)]
        rows.append((f"{c['form']:<3}{c['n']}x{c['k']}", *(median(rates[name]) for name in names), *ratios))
    head = ["product", *names, "of peak", *(f"x {peer}" for peer in peers)]
    show(f"Products with {T} rows, GFLOP/s; the last columns are {best}'s", head, rows)


def main(out: Path, threads: int, rounds: int) -> None:
    """Measure, print, save."""
    cases = [case(form, n, k, threads, rounds) for n, k in SHAPES for form in FORMS]
    for suffix in ("", " bf16"):
        table(cases, suffix)
    save(out, "gemm", threads, cases)
