"""The bounds: multiply-adds in registers per ISA level, and memory bandwidth."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
from report import save, seconds_of, show

from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.levels import isa_levels, peak_flops
from ggmlgraph.core.program import Pool, Program
from ggmlgraph.table.dialect import OUTPUT
from ggmlgraph.table.op import TABLE

N = 1 << 25  # floats of an array: 128 MiB, more than any cache


def arithmetic(threads: int, rounds: int) -> list[dict[str, object]]:
    """GFLOP/s of every level and precision with one thread and with all."""
    cases = list(product(isa_levels(), ("float32", "bf16"), sorted({1, threads})))
    found: dict[tuple[str, str, int], list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for isa, precision, n in cases:
            found[isa, precision, n].append(peak_flops(isa, n, precision) / 1e9)
    return [{"isa": isa, "precision": p, "threads": n, "gflops": rates} for (isa, p, n), rates in found.items()]


def memory(threads: int, rounds: int) -> list[dict[str, object]]:
    """GB/s of reading (OpenBLAS's dot product), copying (memcpy on every thread) and our own elementwise kernel."""
    a, b = np.ones(N, np.float32), np.zeros(N, np.float32)
    graph = CoreGraph()
    leafs = [graph.leaf("f32", (N,), 0, name) for name in "ab"]
    graph.set_name(graph.node(TABLE["add"], leafs, {}), "y", OUTPUT)
    program = Program(graph, Pool(threads), None)
    with ThreadPoolExecutor(threads) as pool:
        parts = list(zip(np.array_split(a, threads), np.array_split(b, threads), strict=True))

        def copy() -> None:
            for done in [pool.submit(np.copyto, to, source) for source, to in parts]:
                done.result()

        works = {
            "read, dot product": (lambda: a.dot(a), 4 * N),
            "copy, memcpy": (copy, 8 * N),
            "y = a + b, ours": (program.run, 12 * N),
        }
        found: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds + 1):  # the first touches the memory
            for name, (work, nbytes) in works.items():
                found[name].append(nbytes / seconds_of(work) / 1e9)
    return [{"access": name, "gbs": rates[1:]} for name, rates in found.items()]


def main(out: Path, threads: int, rounds: int) -> None:
    """Measure, print, save."""
    flops, bandwidth = arithmetic(threads, rounds), memory(threads, rounds)
    show("Multiply-adds in registers", ["level", "precision", "threads", "GFLOP/s", "min", "max"],
         [(r["isa"], r["precision"], r["threads"], *spread(r["gflops"])) for r in flops])  # fmt: skip
    show(f"Memory, {threads} threads", ["access", "GB/s", "min", "max"],
         [(r["access"], *spread(r["gbs"])) for r in bandwidth])  # fmt: skip
    save(out, "peak", threads, {"arithmetic": flops, "memory": bandwidth})


def spread(rates: object) -> tuple[float, float, float]:
    """Median, least, most."""
    values = [float(rate) for rate in rates]  # type: ignore[attr-defined]
    return median(values), min(values), max(values)
