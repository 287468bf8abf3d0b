"""`ggmlgraph dash run/`: the page of `report`, live."""

from __future__ import annotations

from pathlib import Path

from ggmlgraph.cli.report import check
from ggmlgraph.cli.terminal import say
from ggmlgraph.training.report.server import serve


def command(runs: tuple[Path, ...], port: int) -> None:
    """Serve the page until Ctrl-C."""
    check(runs)
    serve(list(runs), port, lambda address: say(f"{address}  (Ctrl-C ends it)"))
