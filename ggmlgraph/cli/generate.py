"""`ggmlgraph generate run/ --prompt TEXT`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from ggmlgraph.cli.terminal import shown
from ggmlgraph.cli.told import told
from ggmlgraph.core.limits import Limits
from ggmlgraph.data.corpus import open_file
from ggmlgraph.errors import UsageError
from ggmlgraph.generation import wave
from ggmlgraph.generation.generate import Generator, open_model
from ggmlgraph.generation.sampling import Sampling
from ggmlgraph.interchange.ondemand import graph_of

MOST_TOGETHER = 16  # prompts; what is kept of each takes as much memory


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
        prompts += tuple(line.removesuffix("\r") for line in open_file(file).lines() if line.strip())
        if not prompts:
            raise UsageError(f"{file}: no line has a prompt")
    runtime, tokenizer = open_model(graph_of(path, told), threads=threads, ctx=ctx, limits=limits)
    with runtime:
        if len(prompts) > 1:
            generator = Generator(runtime, tokenizer, batch=min(len(prompts), MOST_TOGETHER))
            _tell(generator.notes(prompts))
            for i, text in enumerate(generator.texts(prompts, predict, how, stop=stop)):
                click.echo(shown(f"\n{text}" if i else text))
            return
        is_wave = wave.is_wave(runtime.metadata.corpus, tokenizer)
        start = prompts[0] if prompts else wave.PROMPT if is_wave else ""
        text, generator = "", Generator(runtime, tokenizer)
        _tell(generator.notes([start]))
        for piece in generator.text(start, predict, how, stop=stop):
            click.echo(shown(piece), nl=False)
            text += piece
        click.echo()
        for line in wave.report(text, start, tokenizer) if is_wave else ():
            click.echo(shown(line))


def _tell(notes: Iterable[str]) -> None:
    for note in notes:
        told(note)
