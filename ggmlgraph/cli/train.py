"""`ggmlgraph train graph.bin --data FILE… -o run/`: options in, lines out; the work is `gg.Trainer`'s."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ggmlgraph.cli.terminal import say
from ggmlgraph.cli.told import told
from ggmlgraph.core.limits import Limits
from ggmlgraph.errors import UsageError
from ggmlgraph.library.trainer import Trainer
from ggmlgraph.training.config import TrainConfig
from ggmlgraph.training.console import Console
from ggmlgraph.training.run import files_of


def command(
    graph: Path,
    output: Path,
    tokenizer: Path | None,
    threads: int | None,
    memory_limit: int | None,
    resume: str | None,
    init_from: Path | None,
    limits: Limits,
    **options: Any,
) -> None:
    """Train GRAPH on text, or any graph of ggml's on numpy files, and keep everything in a run directory."""
    given = {name: value for name, value in options.items() if value is not None}
    if resume is not None:  # of what was not typed the run knows better
        source = click.get_current_context().get_parameter_source
        given = {name: value for name, value in given.items() if source(name) is not ParameterSource.DEFAULT}
    with Trainer(
        graph,
        output,
        data=_data(given.pop("data", ()), given.pop("input", ())),
        tokenizer=tokenizer,
        threads=threads,
        memory_limit=memory_limit,
        resume=resume,
        init_from=init_from,
        limits=limits,
        tell=told,
        **given,
    ) as trainer:
        outcome = trainer.run(Console(trainer.rate))
        where = shlex.quote(str(outcome.run))
        if not outcome.finished:
            say(f"stopped; go on with: ggmlgraph train {where}/graph.bin -o {where} --resume auto")
        elif trainer.makes_text:
            say(f"try: ggmlgraph generate {where}")


def _data(texts: tuple[str, ...], inputs: tuple[str, ...]) -> tuple[str, ...] | dict[str, Path] | None:
    """As `Trainer` takes them."""
    if texts and inputs:
        raise UsageError("--data is a text: give --data or --input, not both")
    return texts or files_of(TrainConfig(input=inputs)) or None
