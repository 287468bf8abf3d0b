"""One or several runs as one HTML file: `page`. What a file says is text there, whatever it looks like.

The first view is drawn here; the script (page.js) draws the same curves over another axis, smoothed, or from nearer, of
the numbers that the page holds for it. Used by `ggmlgraph report` and `ggmlgraph dash`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from ggmlgraph.errors import escaped
from ggmlgraph.training.console import WHITE, duration
from ggmlgraph.training.events import Event
from ggmlgraph.training.report.buckets import MOST, Buckets, Curve, Maps, bucket, difference
from ggmlgraph.training.report.charts import LETTERS, Line, Mark, Numbers, chart, heat, levels, number
from ggmlgraph.training.report.told import CLIPPED_OF, Told, differences, pieces

HERE = Path(__file__).parent
MOST_EVENTS, MOST_SAMPLES = 300, 40  # told in full; of more, the first and the last
MOST_CHARACTERS = 4000  # of a sample


@dataclass(frozen=True)
class Figure:
    """One chart of the page: which curves, over the steps."""

    name: str  # of the column, or of what is derived from it
    title: str
    overlay: str = ""  # a curve of few points drawn into the same chart


FIGURES = (
    Figure("loss", "loss, nats a token; dots: validation", "val_loss"),
    Figure("difference", "loss above that of the first run; band: two standard errors"),
    Figure("val_bits_per_byte", "validation, bits a byte of text"),
    Figure("val_accuracy", "right answers, share"),
    Figure("lr", "learning rate"),
    Figure("grad_norm", "norm of the gradient, before clipping"),
    Figure("clipped", f"share of the last {CLIPPED_OF} steps whose gradient was clipped"),
    Figure("tokens_per_s", "tokens a second"),
    Figure("share_of_peak", "share of the machine's peak"),
    Figure("memory", "memory of the process, bytes"),
)
MAPS = ("size of weights", "size of gradients, before clipping", "size of updates, by that of weights")
COLOURED = 6  # shades of a token by its loss
NATS = 8.0  # loss of the darkest


def page(runs: Sequence[Told], *, live: bool = False) -> str:
    """The file. live: it asks the server that it comes from for what is new (server.py)."""
    buckets = [_bucketed(run, MOST // len(runs)) for run in runs]
    for run, each in zip(runs[1:], buckets[1:], strict=True):
        each.curves["difference"] = difference(runs[0].history, run.history, each.axes["step"])
    marks = [[_mark(run, event.step, event.kind, event.text) for event in run.marked] for run in runs]
    steps = np.concatenate([each.axes["step"] for each in buckets])
    span = (float(steps.min(initial=np.inf)), float(steps.max(initial=0.0)))
    figures = [
        {"name": f.name, "title": f.title, "overlay": f.overlay, "svg": Markup("\n".join(drawn))}
        for f in FIGURES
        if (drawn := list(chart(f.title, _lines(f, buckets), marks[0] if len(runs) == 1 else [], span)))
    ]
    script = f"const live = {str(live).lower()};\n{(HERE / 'page.js').read_text()}"
    return _template().render(
        title=" and ".join(escaped(run.name) for run in runs),
        runs=[_summary(run) for run in runs],
        figures=figures,
        maps=[each for i, found in enumerate(buckets) for each in _maps(i, found, several=len(runs) > 1)],
        kinds=[(kind, LETTERS[kind]) for kind in LETTERS if any(mark.kind == kind for mark in marks[0])]
        if len(runs) == 1
        else [],
        differences=differences(list(runs)) if len(runs) > 1 else {},
        style=Markup((HERE / "page.css").read_text()),
        script=Markup(script),
        policy=_policy(script, live),
        data=Markup(_embedded([_data(*each) for each in zip(runs, buckets, marks, strict=True)])),
    )


def _policy(script: str, live: bool) -> str:
    """What a browser may do here: run this one script and, where the page is live, ask where it came from for news."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    connect = "connect-src 'self'; " if live else ""
    return f"default-src 'none'; style-src 'unsafe-inline'; {connect}script-src 'sha256-{digest}'"


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["text"] = lambda value: escaped(_option(value), keep=WHITE)
    return environment.get_template("page.html.j2")


def _option(value: Any) -> str:
    """As it is given on a command line: what may be repeated, one after the other."""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# ---------------------------------------------------------------- curves


def _bucketed(run: Told, most: int) -> Buckets:
    """With the curve that follows from what the run says of its machine."""
    found = bucket(run.history, most)
    flops, peak = _positive(run, "flops_per_token"), _positive(run, "peak_flops")
    if flops and peak:
        speed, share = found.curves["tokens_per_s"], flops / peak
        found.curves["share_of_peak"] = Curve(speed.least * share, speed.mean * share, speed.most * share)
    if "clipped" in found.curves:
        clipped = found.curves["clipped"].mean
        found.curves["clipped"] = Curve(clipped, clipped, clipped)
    return found


def _maps(run: int, buckets: Buckets, *, several: bool) -> list[dict[str, Any]]:
    """The maps of one run, with what their shades stand for."""
    maps = buckets.maps
    if maps is None:
        return []
    x, found = buckets.axes["step"][maps.at], []
    for which, (title, values) in enumerate(zip(MAPS, maps.values, strict=True)):
        _, low, high = levels(values)
        if math.isfinite(low):
            names = [escaped(name) for name in maps.names]
            drawn = Markup("\n".join(heat(title, names, x, values)))
            least, most = number(low), number(high)
            found.append({"run": run, "which": which, "title": title, "svg": drawn, "least": least, "most": most,
                          "several": several})  # fmt: skip
    return found


def _positive(run: Told, fact: str) -> float | None:
    value = run.facts.get(fact)
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _lines(figure: Figure, runs: Sequence[Buckets]) -> list[Line]:
    lines = []
    for i, buckets in enumerate(runs):
        steps = buckets.axes["step"]
        if figure.name in buckets.curves:
            lines.append(Line(i, steps, buckets.curves[figure.name]))
        for name in (figure.name, figure.overlay):
            if name in buckets.points and len(buckets.points[name].at):
                points = buckets.points[name]
                values = Curve(points.values, points.values, points.values)
                lines.append(Line(i, steps[points.at], values, dots=True))
    return lines


def _mark(run: Told, step: int, kind: str, text: str) -> Mark:
    return Mark(step, kind, escaped(f"{kind} at step {step}" + (f": {text}" if text else "")))


# ---------------------------------------------------------------- words


def _summary(run: Told) -> dict[str, Any]:
    columns, n = run.history.columns, len(run.history)
    val = columns["val_loss"]
    best = int(np.nanargmin(val)) if np.isfinite(val).any() else None
    skipped = int(np.isnan(columns["loss"]).sum())
    head = {
        "steps": f"{int(columns['step'][-1]) if n else 0:,}{f' of {run.config.steps:,}' if run.config else ''}",
        "tokens": f"{int(columns['tokens'][-1]):,}" if n else "",
        "loss": f"{columns['loss'][-1]:.4f}" if n and np.isfinite(columns["loss"][-1]) else "",
        "best validation": f"{val[best]:.4f} at step {int(columns['step'][best]):,}" if best is not None else "",
        "time": duration(float(columns["elapsed_s"][-1])) if n else "",
        "skipped updates": f"{skipped:,}" if skipped else "",
    }
    return {
        "name": escaped(run.name),
        "head": {name: value for name, value in head.items() if value},
        "made": _made(run),
        "unusual": run.unusual,
        "events": _ends([_event(event) for event in run.events if event.kind != "sample"], MOST_EVENTS),
        "samples": [(event.step, list(_pieces(event))) for event in _ends(run.samples, MOST_SAMPLES)],
    }


def _pieces(sample: Event) -> Iterator[tuple[str, int | None, str]]:
    """The text of each token, its shade, and its loss in words; None where it has none."""
    left = MOST_CHARACTERS
    for text, loss in pieces(sample):
        shown = escaped(text, keep=WHITE)[:left]
        left -= len(shown)
        if shown:
            shade = None if loss is None or not loss >= 0 else min(COLOURED - 1, int(loss / NATS * COLOURED))
            yield shown, shade, "" if loss is None else f"{loss:.2f} nats"


def _made(run: Told) -> dict[str, str]:
    """What made the run, and what it took."""
    made = {name.replace("_", " "): str(value) for name, value in run.facts.items() if isinstance(value, str | int)}
    if run.core_hours is not None:
        made["core hours"] = number(run.core_hours)
    return made


def _event(event: Event) -> tuple[str, str, int, str]:
    at = datetime.fromtimestamp(max(0.0, min(event.time, 1e11)), UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}", event.kind, event.step, escaped(event.text)


def _ends(items: list[Any], most: int) -> list[Any]:
    return items if len(items) <= most else [*items[: most // 2], *items[-(most - most // 2) :]]


# ---------------------------------------------------------------- numbers for the script


def _data(run: Told, buckets: Buckets, marks: Sequence[Mark]) -> dict[str, Any]:
    return {
        "name": escaped(run.name),
        "flops": _positive(run, "flops_per_token"),
        "axes": {name: _packed(column, np.float64) for name, column in buckets.axes.items()},
        "curves": {
            name: [_packed(column, np.float32) for column in (curve.least, curve.mean, curve.most)]
            for name, curve in buckets.curves.items()
        },
        "points": {name: [points.at.tolist(), points.values.tolist()] for name, points in buckets.points.items()},
        "marks": [[mark.x, mark.kind, LETTERS.get(mark.kind, ""), mark.text] for mark in marks],
        "maps": None if buckets.maps is None else _packed_maps(buckets.maps),
    }


def _packed_maps(maps: Maps) -> dict[str, Any]:
    """With the shades as characters, "0" the least, " " where there is none."""
    return {
        "names": [escaped(name) for name in maps.names],
        "at": maps.at.tolist(),
        "values": [_packed(values.ravel(), np.float32) for values in maps.values],
        "shades": ["".join(" 0123456789"[shade + 1] for shade in levels(values)[0].ravel()) for values in maps.values],
    }


def _packed(column: Numbers, dtype: type[np.floating[Any]]) -> str:
    return base64.b64encode(column.astype(np.dtype(dtype).newbyteorder("<")).tobytes()).decode()


def _embedded(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
