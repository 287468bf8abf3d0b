"""`ggmlgraph generate run/ --prompt TEXT`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click

from ggmlgraph.cli.terminal import shown
from ggmlgraph.cli.told import told
from ggmlgraph.core.limits import Limits
from ggmlgraph.data.corpus import open_file
from ggmlgraph.errors import UsageError
from ggmlgraph.generation import wave
from ggmlgraph.generation.sampling import Sampling
from ggmlgraph.library.model import load


def command(
    path: Path,
    adapters: tuple[str, ...],
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
    with load(path, adapters=adapters, threads=threads, ctx=ctx, limits=limits, tell=told) as model:
        if len(prompts) > 1:
            _tell(model.notes(prompts))
            for i, text in enumerate(model.generate(prompts, predict, stop=stop, **asdict(how))):
                click.echo(shown(f"\n{text}" if i else text))
            return
        is_wave = wave.is_wave(model.runtime.metadata.corpus, model.tokenizer)
        start = prompts[0] if prompts else wave.PROMPT if is_wave else ""
        text = ""
        _tell(model.notes([start]))
        for piece in model.stream(start, predict, how, stop=stop):
            click.echo(shown(piece), nl=False)
            text += piece
        click.echo()
        for line in wave.report(text, start, model.tokenizer) if is_wave else ():
            click.echo(shown(line))


def _tell(notes: Iterable[str]) -> None:
    for note in notes:
        told(note)
