"""`ggmlgraph generate run/ --prompt TEXT`."""

from __future__ import annotations

from pathlib import Path

import click

from ggmlgraph import wave
from ggmlgraph.cli import limits
from ggmlgraph.generate import Generator, open_model
from ggmlgraph.limits import Limits
from ggmlgraph.sampling import Sampling

SAMPLING = Sampling()


@click.command()
@click.argument("path", metavar="RUN|CHECKPOINT|GRAPH", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", help="The text to continue.")
@click.option("-n", "--predict", type=click.IntRange(0), default=256, show_default=True, help="Tokens to generate.")
@click.option("--temperature", type=float, default=SAMPLING.temperature, show_default=True,
              help="0: always the likeliest token.")  # fmt: skip
@click.option("--top-k", type=int, default=SAMPLING.top_k, show_default=True,
              help="Draw among the K likeliest tokens; 0: all.")  # fmt: skip
@click.option("--top-p", type=float, default=SAMPLING.top_p, show_default=True,
              help="Draw among the likeliest tokens of this total probability.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, (1 << 64) - 1), default=0, show_default=True)
@click.option("--ctx", type=click.IntRange(1, 1 << 20), help="Tokens looked back on.  [default: as trained]")
@click.option("--threads", type=int, help="[default: all processors]")
@limits.options
def command(
    path: Path,
    prompt: str | None,
    predict: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    ctx: int | None,
    threads: int | None,
    limits: Limits,
) -> None:
    """Continue a text with the model in a run directory (its latest checkpoint), a checkpoint, or a graph file."""
    how = Sampling(temperature, top_k, top_p, seed)
    runtime, tokenizer = open_model(path, threads=threads, ctx=ctx, limits=limits)
    with runtime:
        is_wave = wave.is_wave(runtime.metadata.corpus, tokenizer)
        start = prompt if prompt is not None else wave.PROMPT if is_wave else ""
        text = ""
        for piece in Generator(runtime, tokenizer).text(start, predict, how):
            click.echo(piece, nl=False)
            text += piece
        click.echo()
        for line in wave.report(text, start, tokenizer) if is_wave else ():
            click.echo(line)
