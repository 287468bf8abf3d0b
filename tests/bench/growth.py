"""How a step's time and planned memory grow: with the context at a fixed number of tokens, layers, vocabulary, batch.

Writes the numbers, fitted exponents and a plot (growth.svg). Times are the fastest of all rounds: what a step costs,
not what a shared machine was doing meanwhile.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from report import save, seconds_of, show

import ggmlgraph as gg
from ggmlgraph.models import llama

BASE = llama.Config(n_vocab=4096, n_embd=128, n_head=4, n_layer=4, n_ff=384)
TOKENS = 4096
Step = Callable[[], object]
AXES: dict[str, list[tuple[int, llama.Config, int, int]]] = {  # axis: (value, config, batch, ctx)
    "ctx": [(n, BASE, TOKENS // n, n) for n in (64, 128, 256, 512, 1024, 2048, 4096)],
    "layers": [(n, replace(BASE, n_layer=n), 16, 64) for n in (1, 2, 4, 8, 16)],
    "vocabulary": [(n, replace(BASE, n_vocab=n), 16, 64) for n in (1024, 2048, 4096, 8192, 16384, 32768)],
    "batch": [(n, BASE, n, 64) for n in (1, 2, 4, 8, 16, 32)],
}


def prepare(stack: ExitStack, config: llama.Config, batch: int, ctx: int, threads: int) -> tuple[Step, int]:
    """A training step, and the bytes planned for its activations, gradients and scratch."""
    with tempfile.TemporaryDirectory() as directory:
        gg.trace(llama.loss, config, batch, ctx).save(Path(directory) / "graph.bin")
        runtime = stack.enter_context(gg.Runtime(Path(directory) / "graph.bin", threads=threads))
    windows = np.random.default_rng(0).integers(0, config.n_vocab, (batch, ctx + 1), np.int32)
    pair = windows[:, :-1], windows[:, 1:]
    cost = runtime.programs.train.cost()
    return lambda: runtime.step(pair, lr=1e-4), cost.arena_nbytes + cost.work_nbytes


def measure(axis: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Every point of an axis; they take turns, so that a slow second of the machine meets all of them."""
    with ExitStack() as stack:
        steps = [(value, *prepare(stack, *point, threads)) for value, *point in AXES[axis]]
        points = [{"value": value, "nbytes": nbytes, "seconds": []} for value, _, nbytes in steps]
        for k in range(rounds + 1):
            for point, (_, step, _) in zip(points, steps, strict=True):
                seconds = seconds_of(step)
                if k > 0:  # the first takes memory and starts threads
                    point["seconds"].append(seconds)
    return points


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of log y over log x: y grows like x to that power."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def main(out: Path, threads: int, rounds: int) -> None:
    """Measure, print, plot, save."""
    result = {axis: measure(axis, threads, rounds) for axis in AXES}
    exponents = []
    for axis, points in result.items():
        x = [p["value"] for p in points]
        series = [[min(p["seconds"]) for p in points], [p["nbytes"] for p in points]]
        show(f"Step against {axis}", [axis, "ms", "MiB"],
             [(str(n), 1e3 * s, b / 2**20) for n, s, b in zip(x, *series, strict=True)])  # fmt: skip
        exponents.append((axis, *(f(x, y) for y in series for f in (exponent, _last))))
    show("Exponents, over all points and between the last two",
         ["axis", "time", "last", "memory", "last"], exponents)  # fmt: skip
    save(out, "growth", threads, {"points": result, "exponents": exponents})
    (out / "growth.svg").write_text("\n".join(svg(result)) + "\n", encoding="utf-8")


def _last(x: Sequence[float], y: Sequence[float]) -> float:
    return exponent(x[-2:], y[-2:])


# ---------------------------------------------------------------- the plot

WIDTH, HEIGHT, MARGIN = 220, 180, 40  # of a panel
SERIES = (("ms", "#2563eb", "-"), ("MiB", "#dc2626", "4 3"))


def svg(result: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """A row of panels with logarithmic axes, milliseconds and MiB on one scale."""
    total = len(result) * (WIDTH + MARGIN) + MARGIN
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {HEIGHT + 2 * MARGIN}"'
    yield ' font-family="sans-serif" font-size="11" fill="none"><rect width="100%" height="100%" fill="white"/>'
    for k, (axis, points) in enumerate(result.items()):
        yield f'<g transform="translate({MARGIN + k * (WIDTH + MARGIN)} {MARGIN})">'
        yield from panel(axis, points)
        yield "</g>"
    yield "</svg>"


def panel(axis: str, points: list[dict[str, Any]]) -> Iterator[str]:
    """One axis: a frame, its ends, and a line for each series."""
    x = [p["value"] for p in points]
    lines = [[1e3 * min(p["seconds"]) for p in points], [p["nbytes"] / 2**20 for p in points]]
    low = math.floor(min(math.log10(v) for line in lines for v in line))
    high = math.ceil(max(math.log10(v) for line in lines for v in line))

    def at(n: float, v: float) -> str:
        across = WIDTH * math.log(n / x[0]) / math.log(x[-1] / x[0])
        return f"{across:.1f},{HEIGHT * (high - math.log10(v)) / (high - low):.1f}"

    yield f'<rect width="{WIDTH}" height="{HEIGHT}" stroke="#999"/>'
    for power in range(low, high + 1):
        y = HEIGHT * (high - power) / (high - low)
        yield f'<path d="M0 {y:.1f}H{WIDTH}" stroke="#ddd"/><text x="-4" y="{y + 4:.1f}" fill="black"'
        yield f' text-anchor="end">{10.0**power:g}</text>'
    yield f'<text x="0" y="{HEIGHT + 16}" fill="black">{x[0]}</text>'
    yield f'<text x="{WIDTH}" y="{HEIGHT + 16}" fill="black" text-anchor="end">{x[-1]}</text>'
    yield f'<text x="{WIDTH / 2}" y="{HEIGHT + 16}" fill="black" text-anchor="middle">{axis}</text>'
    for k, (line, (unit, colour, dash)) in enumerate(zip(lines, SERIES, strict=True)):
        route = " ".join(at(n, v) for n, v in zip(x, line, strict=True))
        dashes = "" if dash == "-" else f' stroke-dasharray="{dash}"'
        yield f'<polyline points="{route}" stroke="{colour}" stroke-width="2"{dashes}/>'
        yield f'<text x="{8 + 40 * k}" y="-6" fill="{colour}">{unit}</text>'
