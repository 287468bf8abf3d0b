"""`ggmlgraph rewrite IN OUT --dialect D`."""

from __future__ import annotations

from pathlib import Path

from ggmlgraph.amounts import nbytes
from ggmlgraph.cli.terminal import say
from ggmlgraph.core.importer import identify
from ggmlgraph.core.limits import Limits
from ggmlgraph.graphfile.rewrite import rewrite


def command(source: Path, target: Path, dialect: str, source_dialect: str | None, limits: Limits) -> None:
    """Write the graph file IN as OUT in another dialect of ggml's format, weights and all."""
    written = rewrite(source, target, dialect, source_dialect or identify(source, limits))
    size = nbytes(target.stat().st_size)
    say(f"{target}: {dialect}, {len(written.leafs)} leafs, {len(written.nodes)} nodes, {size}")
