"""`ggmlgraph export-gguf RUN|GRAPH -o model.gguf`."""

from __future__ import annotations

from pathlib import Path

import click

from ggmlgraph import exportgguf, trained
from ggmlgraph.console import nbytes


@click.command()
@click.argument("path", metavar="RUN|CHECKPOINT|GRAPH", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False),
              help="The GGUF file to write.")  # fmt: skip
@click.option("--type", "kind", type=click.Choice(list(exportgguf.TYPES)), default="f32", show_default=True,
              help="Of the matrices; vectors stay F32.")  # fmt: skip
@click.option("--ctx", type=click.IntRange(1, 1 << 20), help="Tokens the model looks back on.  [default: the graph's]")
def command(path: Path, output: Path, kind: str, ctx: int | None) -> None:
    """Write a model for llama.cpp, tokenizer included.

    Refused is what llama.cpp would load and get wrong.
    """
    model = trained.find(path, ctx)
    notes = exportgguf.export(model, output, kind)
    ids = f"tokenizer {model.tokenizer.kind}" if model.tokenizer else "no tokenizer"
    click.echo(f"{output}: {model.architecture}, {kind}, {nbytes(output.stat().st_size)}, {ids}")
    for note in notes:
        click.echo(note, err=True)
