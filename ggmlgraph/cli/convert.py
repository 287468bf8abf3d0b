"""`ggmlgraph convert SRC -o graph.bin`."""

from __future__ import annotations

import math
from pathlib import Path

import click

from ggmlgraph.cli.commands import MOST_CTX
from ggmlgraph.errors import UsageError
from ggmlgraph.interchange import checkpoints, convert
from ggmlgraph.interchange.convert import Converted
from ggmlgraph.interchange.sources.base import ModelSource, Moments, scalar
from ggmlgraph.interchange.tokenizer import load_tokenizer
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tracing import architectures
from ggmlgraph.tracing.tracer import Graph


def command(
    source: Path,
    fields: tuple[str, ...],
    output: Path,
    name: str | None,
    checkpoint: Path | None,
    order: str | None,
    tokenizer: Path | None,
    batch: int,
    ctx: int | None,
    dtype: str,
    frozen: bool,
) -> None:
    """Write a checkpoint of another program as a graph file with its weights."""
    if frozen and dtype != "f32":
        raise UsageError("--frozen keeps types as they are: leave --dtype out")
    found = _found(source, name, fields, order)
    chosen = found.tokenizer if tokenizer is None else load_tokenizer(tokenizer)
    ctx = ctx or min(found.n_ctx or MOST_CTX, MOST_CTX)
    stored_as = None if frozen else dtype
    converted = convert.convert(found, output, batch=batch, ctx=ctx, tokenizer=chosen, dtype=stored_as)
    click.echo(_summary(output, found, converted.graph, chosen))
    if checkpoint is not None:
        kept = convert.keep_moments(found, output, checkpoint)
        click.echo(f"{checkpoint}: the optimiser's state after {kept.n_steps:,} steps{_settings(kept)}")
    for line in _advice(converted, found, chosen):
        click.echo(line, err=True)


def _found(source: Path, name: str | None, fields: tuple[str, ...], order: str | None) -> ModelSource:
    if name is None:
        pairs = [field.partition("=") for field in fields]
        if wrong := next((field for field in fields if "=" not in field), None):
            raise UsageError(f"{wrong!r} is not FIELD=VALUE")
        return checkpoints.find(source, {field: scalar(text) for field, _, text in pairs}, order)
    loaded = architectures.load(name)
    values = architectures.parse_fields(loaded, fields)
    architecture = loaded.path.stem if loaded.built_in else name
    return checkpoints.of_model(source, architecture, {**architectures.defaults(loaded), **values})


def _summary(path: Path, source: ModelSource, graph: Graph, tokenizer: Tokenizer | None) -> str:
    n_params = sum(math.prod(map(int, node.shape)) for node in graph.nodes if node.initializer)
    ids = f"tokenizer {tokenizer.kind}, {tokenizer.n_vocab:,} ids" if tokenizer else "no tokenizer"
    types = sorted({node.dtype for node in graph.nodes if node.initializer} - {"f32"})
    frozen = f" (matrices in {', '.join(types)}, not trained)" if types else ""
    return f"{path}: {graph.model} from a {source.kind}, {n_params:,} parameters{frozen}, {ids}"


def _settings(moments: Moments) -> str:
    """What the run was trained with, where its checkpoint says it."""
    said = ", ".join(f"{name} {value:g}" for name, value in moments.settings.items())
    return f", trained with {said}" if said else ""


def _advice(converted: Converted, source: ModelSource, tokenizer: Tokenizer | None) -> list[str]:
    """What the user should know: a vocabulary that does not fill the model's, and how the model reads plain text."""
    if tokenizer is None:
        return [f"no tokenizer ({source.no_tokenizer}): give one with --tokenizer; weights not checked on text"]
    lines = []
    n_vocab = source.config["n_vocab"]
    if tokenizer.n_vocab < n_vocab:
        lines.append(f"the model has {n_vocab - tokenizer.n_vocab} ids more than the tokenizer; they are never used")
    result = converted.check
    if result is None:
        return [*lines, f"not checked on text: {converted.unchecked}"]
    text = f"loss on plain English {result.loss:.2f} nats per token, {result.ceiling:.2f} would be guessing"
    if result.passed:
        return [*lines, f"checked: {text}"]
    if result.permuted:
        text += f", {result.reordered:.2f} with rows in another order"
    return [*lines, f"WARNING: {text}: the weights look permuted, or the tokenizer is not this model's"]
