"""`ggmlgraph tokenizer train FILE… -o tokenizer.model`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from ggmlgraph import tokenizer as tokenizers


@click.group()
def command() -> None:
    """Train a tokenizer."""


@command.command()
@click.argument("sources", metavar="FILE...", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True,
              help="The sentencepiece model to write.")  # fmt: skip
@click.option("--n-vocab", type=click.IntRange(1), default=4096, show_default=True, help="Number of ids.")
@click.option("--model", type=click.Choice(["bpe", "unigram"]), default="bpe", show_default=True)
def train(sources: tuple[str, ...], output: Path, n_vocab: int, model: Literal["bpe", "unigram"]) -> None:
    """Train a sentencepiece model on UTF-8 texts (or builtin:NAME). Every text round-trips through it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    trained = tokenizers.train(sources, output, model, n_vocab)
    click.echo(f"{output}: {model} with {trained.n_vocab:,} ids")
