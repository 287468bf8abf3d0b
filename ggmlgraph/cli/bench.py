"""`ggmlgraph bench graph.bin`: how fast training steps are here, beside the peak, and where their time goes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from ggmlgraph import machine
from ggmlgraph.amounts import nbytes
from ggmlgraph.core.levels import isa_levels, peak_flops
from ggmlgraph.core.limits import Limits
from ggmlgraph.execution import profiler
from ggmlgraph.execution.feeder import Batch
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.generation.generate import n_vocab_of

N_WARMUP = 1  # steps that take memory and start threads


def command(
    graph: Path,
    batch: int | None,
    ctx: int | None,
    threads: int | None,
    memory_limit: int | None,
    matmul_precision: str,
    limits: Limits,
    steps: int,
    profile: bool,
    as_json: bool,
) -> None:
    """Run training steps of GRAPH on random tokens and measure them."""
    before = machine.peak_memory()
    with Runtime(
        graph,
        threads=threads,
        batch=batch,
        ctx=ctx,
        memory_limit=memory_limit,
        matmul_precision=matmul_precision,
        limits=limits,
    ) as runtime:
        step = random_step(runtime)
        for _ in range(N_WARMUP):
            step()
        if profile:
            measured = profile_steps(runtime, step, steps)
            lines, result = profiler.table(measured), measured.as_dict()
        else:
            result = time_steps(runtime, step, steps)
            result["memory_before"], result["memory_peak"] = before, machine.peak_memory()
            lines = _report(runtime, result)
        click.echo(json.dumps(result) if as_json else "\n".join(lines))


def random_step(runtime: Runtime) -> Callable[[], None]:
    """A function that does one training step on tokens it draws."""
    rng, n_vocab = np.random.default_rng(0), n_vocab_of(runtime)
    batch, ctx = runtime.window

    def draw() -> Batch:
        windows = rng.integers(0, n_vocab, (batch, ctx + 1), np.int32)
        return windows[:, :-1], windows[:, 1:]

    def step() -> None:
        runtime.step(draw(), lr=1e-4)

    return step


def profile_steps(runtime: Runtime, step: Callable[[], None], n_steps: int) -> profiler.Profile:
    """Of n_steps the one that took the median time, by kinds of node."""
    program, recorded = runtime.programs.train, []
    for _ in range(n_steps):
        with program.profile() as seconds:
            start = time.perf_counter()
            step()
            recorded.append((time.perf_counter() - start, seconds))
    total, seconds = sorted(recorded, key=lambda record: record[0])[n_steps // 2]
    return profiler.by_kind(program, seconds, total)


def time_steps(runtime: Runtime, step: Callable[[], None], n_steps: int) -> dict[str, Any]:
    """Steps with the peak measured before and after each; rates from medians."""
    cost = runtime.programs.train.cost()
    batch, ctx = runtime.window
    measure_peak = partial(peak_flops, runtime.settings.isa, runtime.threads, runtime.settings.matmul_precision)
    seconds, peaks = [], [measure_peak()]
    for _ in range(n_steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
        peaks.append(measure_peak())
    shares = [cost.flops / s / ((a + b) / 2) for s, a, b in zip(seconds, peaks, peaks[1:], strict=False)]
    typical = median(seconds)
    return {
        "step_seconds": typical,
        "tokens_per_second": batch * ctx / typical,
        "flops_per_second": cost.flops / typical,
        "peak_flops_per_second": median(peaks),
        "share_of_peak": median(shares),
        "all_step_seconds": seconds,
        "all_peaks": peaks,
        "flops": cost.flops,
        "planned_nbytes": cost.nbytes,
        "batch": batch,
        "ctx": ctx,
        "threads": runtime.threads,
        "isa": runtime.settings.isa or isa_levels()[0],
        "matmul_precision": runtime.settings.matmul_precision,
    }


def _report(runtime: Runtime, r: dict[str, Any]) -> Iterator[str]:
    name = runtime.metadata.model or "unnamed"
    seconds = r["all_step_seconds"]
    yield f"model    {name}: {runtime.n_params:,} parameters, batch {r['batch']}, ctx {r['ctx']}"
    peak = f"{r['peak_flops_per_second'] / 1e9:,.1f} GFLOP/s at the peak"
    yield f"machine  {r['threads']} threads, {runtime.level}, {peak}"
    yield (
        f"step     {r['step_seconds']:.4f} s, median of {len(seconds)} from {min(seconds):.4f} to {max(seconds):.4f}; "
        f"{r['flops'] / 1e9:,.2f} GFLOP in matrix products"
    )
    yield (
        f"speed    {r['tokens_per_second']:,.0f} tokens/s, {r['flops_per_second'] / 1e9:,.1f} GFLOP/s, "
        f"{r['share_of_peak']:.1%} of the peak measured beside"
    )
    used = r["memory_peak"] - r["memory_before"]
    yield (
        f"memory   {nbytes(used)} at the peak above the {nbytes(r['memory_before'])} of the program itself; "
        f"the plan says {nbytes(r['planned_nbytes'])} ({used / r['planned_nbytes'] - 1:+.1%})"
    )
