"""`ggmlgraph export-hf RUN|GRAPH -o DIR`."""

from __future__ import annotations

from pathlib import Path

import click

from ggmlgraph import exporthf, trained


@click.command()
@click.argument("path", metavar="RUN|CHECKPOINT|GRAPH", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="The folder to write.")  # fmt: skip
@click.option("--ctx", type=click.IntRange(1, 1 << 20), help="Tokens the model looks back on.  [default: the graph's]")
def command(path: Path, output: Path, ctx: int | None) -> None:
    """Write a model as a folder that transformers loads: config, weights in float32, tokenizer."""
    model = trained.find(path, ctx)
    notes = exporthf.export(model, output)
    ids = f"tokenizer {model.tokenizer.kind}" if model.tokenizer else "no tokenizer"
    click.echo(f"{output}: {model.architecture}, {len(model.tensors)} tensors, {ids}")
    for note in notes:
        click.echo(note, err=True)
