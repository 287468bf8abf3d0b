"""`ggmlgraph generate run/ --prompt TEXT`."""

from __future__ import annotations

from pathlib import Path

import click

from ggmlgraph import wave
from ggmlgraph.cli import limits, sampling
from ggmlgraph.corpus import open_source
from ggmlgraph.errors import UsageError
from ggmlgraph.generate import Generator, open_model
from ggmlgraph.limits import Limits
from ggmlgraph.sampling import Sampling

MOST_TOGETHER = 16  # prompts; what is kept of each takes as much memory


@click.command()
@click.argument("path", metavar="RUN|CHECKPOINT|GRAPH", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", "prompts", multiple=True, help="The text to continue. Several: together, then in turn.")
@click.option("--prompts", "file", type=click.Path(path_type=Path), help="A file with a prompt on each line.")
@click.option("-n", "--predict", type=click.IntRange(0), default=256, show_default=True, help="Tokens to generate.")
@click.option("--stop", multiple=True, help="End before this text. May be given several times.")
@sampling.options
@click.option("--ctx", type=click.IntRange(1, 1 << 20), help="Tokens looked back on.  [default: as trained]")
@click.option("--threads", type=int, help="[default: all processors]")
@limits.options
def command(
    path: Path,
    prompts: tuple[str, ...],
    file: Path | None,
    predict: int,
    stop: tuple[str, ...],
    ctx: int | None,
    threads: int | None,
    limits: Limits,
    how: Sampling,
) -> None:
    """Continue a text with the model in a run directory (its latest checkpoint), a checkpoint, or a graph file."""
    if file is not None:
        prompts += tuple(line.removesuffix("\r") for line in open_source(file).lines() if line.strip())
        if not prompts:
            raise UsageError(f"{file}: no line has a prompt")
    runtime, tokenizer = open_model(path, threads=threads, ctx=ctx, limits=limits)
    with runtime:
        if len(prompts) > 1:
            generator = Generator(runtime, tokenizer, batch=min(len(prompts), MOST_TOGETHER))
            for i, text in enumerate(generator.texts(prompts, predict, how, stop=stop)):
                click.echo(f"\n{text}" if i else text)
            return
        is_wave = wave.is_wave(runtime.metadata.corpus, tokenizer)
        start = prompts[0] if prompts else wave.PROMPT if is_wave else ""
        text = ""
        for piece in Generator(runtime, tokenizer).text(start, predict, how, stop=stop):
            click.echo(piece, nl=False)
            text += piece
        click.echo()
        for line in wave.report(text, start, tokenizer) if is_wave else ():
            click.echo(line)
