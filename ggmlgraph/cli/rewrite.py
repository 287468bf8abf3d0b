"""`ggmlgraph rewrite IN OUT --dialect D`."""

from __future__ import annotations

from pathlib import Path

import click

from ggmlgraph.cli import limits
from ggmlgraph.console import nbytes
from ggmlgraph.dialect import DIALECTS
from ggmlgraph.limits import Limits
from ggmlgraph.rewrite import rewrite
from ggmlgraph.runtime import identify


@click.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--dialect", required=True, type=click.Choice(list(DIALECTS)), help="Which ggml OUT is for.")
@click.option(
    "--from", "source_dialect", type=click.Choice(list(DIALECTS)), help="Which ggml IN is of.  [default: found out]"
)
@limits.options
def command(source: Path, target: Path, dialect: str, source_dialect: str | None, limits: Limits) -> None:
    """Write the graph file IN as OUT in another dialect of ggml's format, weights and all.

    v2 is the last ggml that reads graphs (2024-11-04), v2a the one in llama-cpp-python 0.3.1, v1 ggml-python 0.0.37.
    """
    written = rewrite(source, target, dialect, source_dialect or identify(source, limits))
    size = nbytes(target.stat().st_size)
    click.echo(f"{target}: {dialect}, {len(written.leafs)} leafs, {len(written.nodes)} nodes, {size}")
