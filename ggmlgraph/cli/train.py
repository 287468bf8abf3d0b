"""`ggmlgraph train graph.bin --data FILE… -o run/`: options in, lines out; the work is `gg.Trainer`'s."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ggmlgraph import machine
from ggmlgraph.cli.terminal import say
from ggmlgraph.cli.told import told
from ggmlgraph.cluster.mpi import MpiRanks, launched, world
from ggmlgraph.core.limits import Limits
from ggmlgraph.errors import GGError, UsageError
from ggmlgraph.execution.slots import Alone, Ranks
from ggmlgraph.library.following import follow
from ggmlgraph.library.trainer import Trainer
from ggmlgraph.training.config import TrainConfig
from ggmlgraph.training.console import Console
from ggmlgraph.training.run import files_of
from ggmlgraph.training.stopping import StopRequest


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
    with _processes() as ranks:
        if threads is None and isinstance(ranks, MpiRanks):
            threads = max(1, machine.n_threads() // ranks.n_beside)
        if isinstance(ranks, Alone) or ranks.rank == 0:
            _train(graph, output, ranks, given, threads=threads, memory_limit=memory_limit, resume=resume,
                   init_from=init_from, tokenizer=tokenizer, limits=limits)  # fmt: skip
        else:
            follow(graph, ranks, threads=threads, memory_limit=memory_limit, limits=limits)


@contextmanager
def _processes() -> Iterator[Alone | MpiRanks]:
    """Those of an MPI job, where a launcher started several."""
    if launched() == 1:
        yield Alone()
        return
    ranks = world()
    with StopRequest(lambda: None) if ranks.rank else nullcontext():
        try:
            yield ranks
        except GGError as error:
            raise type(error)(f"{ranks.name()}: {error}" if ranks.rank else str(error), code=error.code) from None
    ranks.close()


def _train(graph: Path, output: Path, ranks: Ranks, given: dict[str, Any], **how: Any) -> None:
    data = _data(given.pop("data", ()), given.pop("input", ()))
    with Trainer(graph, output, data=data, ranks=ranks, tell=told, **how, **given) as trainer:
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
