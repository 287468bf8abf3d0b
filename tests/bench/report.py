"""What every benchmark needs: medians, tables on the terminal, a JSON file of where it was measured, our commands."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ggmlgraph import machine
from ggmlgraph.core.levels import isa_levels

COMMAND = [sys.executable, "-P", "-c", "from ggmlgraph.cli.main import main; main()"]  # whatever is on PATH


def ggmlgraph(*words: object) -> None:
    """Run a command of ours; what it prints is not shown."""
    subprocess.run([*COMMAND, *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def seconds_of(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """The median of a/b over pairs that were measured right after one another."""
    return median(x / y for x, y in zip(a, b, strict=True))


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table in Markdown, as docs/performance.md has it; the first column is text, the others are numbers."""
    cells = [list(head), *([_text(value) for value in row] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    print(f"\n{title}\n")
    for first, *rest in (cells[0], rule, *cells[1:]):
        numbers = (f"{value:>{width}}" for value, width in zip(rest, widths[1:], strict=True))
        print(f"| {' | '.join([f'{first:<{widths[0]}}', *numbers])} |")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return str(value)


def save(directory: Path, name: str, threads: int, result: Any) -> None:
    """Write build/bench/NAME.json: the result with every single measurement."""
    where = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "processor": processor(),
        "system": platform.platform(),
        "threads": threads,
        "usable_processors": machine.n_threads(),
        "isa_levels": isa_levels(),
    }
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    path.write_text(json.dumps({"machine": where, "result": result}, indent=1) + "\n", encoding="utf-8")
    print(f"-> {path}")


def processor() -> str:
    """Its name, family and model: virtual machines often hide the first."""
    lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return f"{fields.get('model name', '?')}, family {fields.get('cpu family')}, model {fields.get('model')}"
