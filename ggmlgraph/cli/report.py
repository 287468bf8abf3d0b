"""`ggmlgraph report run/ -o run.html`: one or several runs as one page that needs no network."""

from __future__ import annotations

from pathlib import Path

from ggmlgraph.cli.told import told as tell
from ggmlgraph.durable import replacing
from ggmlgraph.errors import UsageError
from ggmlgraph.training.report.page import page
from ggmlgraph.training.report.told import told

MOST_RUNS = 6


def command(runs: tuple[Path, ...], output: Path) -> None:
    """Write the page."""
    check(runs)
    text = page([told(run) for run in runs])
    with replacing(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    tell(f"{output}: {len(text.encode()) / 1e3:,.0f} kB")


def check(runs: tuple[Path, ...]) -> None:
    """Raises UsageError for more runs than colours tell apart."""
    if len(runs) > MOST_RUNS:
        raise UsageError(f"{len(runs)} runs, at most {MOST_RUNS} can be told apart on one page")
