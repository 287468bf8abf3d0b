"""`ggmlgraph finetune BASE --data FILE… --lora r=16 alpha=32 -o run/`: a graph with adapters, then a run of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ggmlgraph.cli import train
from ggmlgraph.cli.commands import MOST_CTX
from ggmlgraph.cli.convert import tokenizer_of
from ggmlgraph.cli.terminal import say
from ggmlgraph.errors import UsageError
from ggmlgraph.finetuning import attaching, basis, lora, targets
from ggmlgraph.finetuning.basis import Choice
from ggmlgraph.graphfile.metadata import Finetuned
from ggmlgraph.interchange import checkpoints, convert, ondemand
from ggmlgraph.training import rundir
from ggmlgraph.training.rundir import RunDirectory

FULL_LR, LORA_LR = 2e-5, 2e-4  # Schulman et al. 2025: adapters want about ten times the rate of full fine-tuning
BATCH = 16  # of a converted base


def command(
    base: Path,
    fields: tuple[str, ...],
    output: Path,
    tokenizer: Path | None,
    adapted: bool,
    adapter: str | None,
    train_words: tuple[str, ...],
    last: int | None,
    **options: Any,
) -> None:
    """Write BASE with adapters into the run directory and train it there."""
    if fields and not adapted:
        raise UsageError(f"{fields[0]} is a field of adapters: add --lora")
    if adapter is not None and (adapted or train_words or last):
        raise UsageError("--adapter brings what is trained: leave --lora, --train and --last out")
    choice = Choice(lora.parse(fields) if adapted else None, train_words, last)
    if options["lr"] is None:
        options["lr"] = LORA_LR if adapted or adapter else FULL_LR
    with RunDirectory(output) as run:
        run.check_new()
        graph = rundir.graph_path(run.path)
        with _graph_of(base, run.path, tokenizer, keep=adapted or adapter is not None) as found:
            said = (
                basis.write(found, graph, choice, options["seed"])
                if adapter is None
                else attaching.attach(found, graph, [adapter])
            )
    for line in _told(said):
        say(line)
    inside = None if ondemand.is_foreign(base) else tokenizer
    train.command(graph=graph, output=output, tokenizer=inside, resume=None, init_from=None, **options)


@contextmanager
def _graph_of(base: Path, folder: Path, tokenizer: Path | None, *, keep: bool) -> Iterator[Path]:
    """The base itself, or the graph made of the checkpoint of another program that is there, which then goes again.

    keep: matrices stay in the types that they have there, which are not trained.
    """
    if not ondemand.is_foreign(base):
        yield base
        return
    made, source = folder / "base.bin", checkpoints.find(base)
    try:
        found = tokenizer_of(source, tokenizer)
        ctx = min(source.n_ctx or MOST_CTX, MOST_CTX)
        own = found.tokenizer if found else None
        convert.convert(source, made, batch=BATCH, ctx=ctx, tokenizer=own, dtype=None if keep else "f32")
        for note in (*source.notes, *(found.notes if found else ())):
            say(note, err=True)
        yield made
    finally:
        made.unlink(missing_ok=True)


def _told(said: Finetuned) -> Iterator[str]:
    """What is adapted."""
    if not said.adapters:
        return
    ranks = sorted({adapter.rank for adapter in said.adapters.values()})
    scales = sorted({f"{said.scale(name):.4g}" for name in said.adapters})
    yield (
        f"adapters {len(said.adapters)} of rank {', '.join(map(str, ranks))}, scale {', '.join(scales)}: "
        f"{targets.listed(said.adapters)}"
    )
