"""Curves as SVG, drawn where the page is written, so that its first view needs no script.

A curve is a line through the means of its stretches and a band from their least to their most. Used by `page`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.training.report.buckets import Curve, evenly

WIDTH, HEIGHT = 640.0, 220.0  # of a chart, in the units of its view box
LEFT, RIGHT, TOP, BOTTOM = 62.0, 14.0, 12.0, 26.0
MOST_DRAWN = 500  # stretches: about what a chart has pixels for
N_TICKS = 5
CROWDED = 60  # events of a kind: of more, some are drawn
MOST_DOTS = 200  # of a curve whose values are dots
LETTERS = {"resume": "R", "skip": "S", "spike": "!", "rollback": "B", "phase": "P", "checkpoint": "C"}  # of kinds

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """One curve of one run. x rises."""

    run: int  # number of the run, which is its colour
    x: Numbers
    curve: Curve
    dots: bool = False  # few values, drawn as points too


@dataclass(frozen=True)
class Mark:
    """Something that happened, at a place of the x axis."""

    x: float
    kind: str
    text: str


@dataclass(frozen=True)
class Scale:
    """From values to places."""

    least: float
    most: float
    begin: float
    end: float
    log: bool = False

    def at(self, values: Numbers | float) -> Numbers:
        """Places of values."""
        (a, b), places = self._of(np.array([self.least, self.most])), self._of(np.asarray(values, np.float64))
        found: Numbers = self.begin + (places - a) / max(b - a, 1e-300) * (self.end - self.begin)
        return found

    def _of(self, values: Numbers) -> Numbers:
        return np.log10(np.maximum(values, 1e-300)) if self.log else values

    def ticks(self) -> list[float]:
        """Round numbers in the range."""
        if self.log and self.most / self.least >= 10:
            return [10.0**k for k in range(math.ceil(math.log10(self.least)), math.floor(math.log10(self.most)) + 1)]
        span = self.most - self.least
        step = 10.0 ** math.floor(math.log10(span / N_TICKS)) if span > 0 else 1.0
        step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= N_TICKS)
        first = math.ceil(self.least / step)
        return [k * step for k in range(first, math.floor(self.most / step + 1e-9) + 1)]


def chart(
    title: str, lines: Sequence[Line], marks: Sequence[Mark], span: tuple[float, float], *, log: bool = False
) -> Iterator[str]:
    """One chart; nothing if no curve has a number. span: from where to where x goes."""
    reduced = [_reduced(line) for line in lines]
    values = [v for line in reduced for v in (line.curve.least, line.curve.most)]
    present = np.concatenate([v[np.isfinite(v) & ((v > 0) | (not log))] for v in values]) if values else np.zeros(0)
    if not len(present):
        return
    across = Scale(span[0], _above(*span), LEFT, WIDTH - RIGHT)
    low, high = float(present.min()), float(present.max())
    margin = 0.0 if log else 0.04 * (high - low)
    up = Scale(low - margin, _above(low, high + margin), HEIGHT - BOTTOM, TOP, log)
    yield f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img"><title>{escape(title)}</title>'
    yield from _axes(across, up)
    yield from _marks(marks, across)
    for line in reduced:
        yield from _line(line, across, up)
    yield "</svg>"


def _above(low: float, high: float) -> float:
    return high if high > low else low + max(abs(low) * 0.01, 1e-12)


def _reduced(line: Line) -> Line:
    """With no more stretches than a chart shows."""
    n = len(line.x)
    if n <= MOST_DRAWN or line.dots:
        return line
    starts = evenly(n, MOST_DRAWN)
    return Line(line.run, line.x[np.append(starts[1:], n) - 1], line.curve.merged(starts))


def _axes(across: Scale, up: Scale) -> Iterator[str]:
    for y in up.ticks():
        at = float(up.at(y))
        yield f'<path class="grid" d="M{LEFT:.0f} {at:.1f}H{WIDTH - RIGHT:.0f}"/>'
        yield f'<text x="{LEFT - 6:.0f}" y="{at + 4:.1f}" text-anchor="end">{number(y)}</text>'
    for x in across.ticks():
        yield f'<text x="{float(across.at(x)):.1f}" y="{HEIGHT - 8:.0f}" text-anchor="middle">{number(x)}</text>'


def _marks(marks: Sequence[Mark], across: Scale) -> Iterator[str]:
    inside = [mark for mark in marks if across.least <= mark.x <= across.most]
    for kind in dict.fromkeys(mark.kind for mark in inside):
        same = [mark for mark in inside if mark.kind == kind]
        for mark in same if len(same) <= CROWDED else same[:: math.ceil(len(same) / CROWDED)]:
            x = float(across.at(mark.x))
            yield f'<g class="mark {escape(kind)}"><title>{escape(mark.text)}</title>'
            yield f'<path d="M{x:.1f} {TOP:.0f}V{HEIGHT - BOTTOM:.0f}"/>'
            yield f'<text x="{x:.1f}" y="{TOP - 2:.0f}" text-anchor="middle">{LETTERS.get(kind, "")}</text></g>'


def _line(line: Line, across: Scale, up: Scale) -> Iterator[str]:
    xs, mean = across.at(line.x), up.at(line.curve.mean)
    least, most = up.at(line.curve.least), up.at(line.curve.most)
    yield f'<g class="run run{line.run}">'
    for stretch in _present(mean):
        if len(stretch) > 1 and not line.dots:
            there = f"M{_path(xs[stretch], most[stretch])}L{_path(xs[stretch][::-1], least[stretch][::-1])}Z"
            yield f'<path class="band" d="{there}"/>'
        yield f'<path class="mean" d="M{_path(xs[stretch], mean[stretch])}"/>'
        if (line.dots and len(line.x) <= MOST_DOTS) or len(stretch) == 1:
            yield from (f'<circle cx="{xs[i]:.1f}" cy="{mean[i]:.1f}" r="2.5"/>' for i in stretch)
    yield "</g>"


def _present(values: Numbers) -> list[NDArray[np.int64]]:
    """The stretches of numbers without a gap."""
    there = np.flatnonzero(np.isfinite(values))
    return [each for each in np.split(there, np.flatnonzero(np.diff(there) > 1) + 1) if len(each)]


def _path(xs: Numbers, ys: Numbers) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))


# ---------------------------------------------------------------- maps

SHADES = 10  # from the least to the most; their colours are the page's
ROW, NAMES = 14.0, 110.0  # height of a layer, and width of its name


def levels(values: Numbers) -> tuple[NDArray[np.int64], float, float]:
    """The shade of each value, by its logarithm, -1 for what is no positive number; and what the ends stand for."""
    there = np.isfinite(values) & (values > 0)
    if not there.any():
        return np.full(values.shape, -1), np.nan, np.nan
    low, high = (float(v) for v in np.quantile(values[there], (0.01, 0.99)))
    share = np.log(np.where(there, values, low) / low) / max(math.log(high / low), 1e-12)
    return np.where(there, np.clip((share * SHADES).astype(np.int64), 0, SHADES - 1), -1), low, high


def heat(title: str, names: Sequence[str], x: Numbers, values: Numbers) -> Iterator[str]:
    """A row a layer, shaded by value. x: where each column ends, rising from 0. values: (row, column)."""
    rows = max(4.0, min(ROW, 560.0 / len(names)))
    bottom = TOP + rows * len(names)
    across = Scale(0.0, _above(0.0, float(x[-1])), NAMES, WIDTH - RIGHT)
    edges = [NAMES, *across.at(x)]
    shades, _, _ = levels(values)
    yield f'<svg class="chart heat" viewBox="0 0 {WIDTH:.0f} {bottom + BOTTOM:.0f}" role="img">'
    yield f"<title>{escape(title)}</title>"
    for shade in range(SHADES):
        cells = zip(*np.nonzero(shades == shade), strict=True)
        path = "".join(
            f"M{edges[j]:.1f} {TOP + rows * i:.1f}H{edges[j + 1]:.1f}v{rows:.1f}H{edges[j]:.1f}z" for i, j in cells
        )
        yield f'<path class="shade{shade}" d="{path}"/>'
    every = math.ceil(10.0 / rows)  # names do not lie on each other
    for i, name in list(enumerate(names))[::every]:
        at = TOP + rows * (i + 0.5) + 4
        yield f'<text x="{NAMES - 6:.0f}" y="{at:.1f}" text-anchor="end">{escape(name[:16])}</text>'
    for tick in across.ticks():
        at = float(across.at(tick))
        yield f'<text x="{at:.1f}" y="{bottom + 18:.0f}" text-anchor="middle">{number(tick)}</text>'
    yield "</svg>"


def number(value: float) -> str:
    """ "12k", "0.25", "3e-05": short."""
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.4g}{unit}"
    return f"{value:.4g}"
