"""`ggmlgraph convert SRC -o graph.bin`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from ggmlgraph.cli.commands import MOST_CTX
from ggmlgraph.cli.terminal import say
from ggmlgraph.errors import GGError, UsageError
from ggmlgraph.interchange import checkpoints, convert
from ggmlgraph.interchange.convert import Converted
from ggmlgraph.interchange.sources.base import ModelSource, Moments, completed, scalar
from ggmlgraph.interchange.tokenizer import Found, find_tokenizer
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
    without: bool,
    batch: int,
    ctx: int | None,
    dtype: str,
    frozen: bool,
) -> None:
    """Write a checkpoint of another program as a graph file with its weights."""
    if frozen and dtype != "f32":
        raise UsageError("--frozen keeps types as they are: leave --dtype out")
    if without and tokenizer is not None:
        raise UsageError("give either --tokenizer or --no-tokenizer")
    found = _found(source, name, fields, order)
    chosen = None if without else tokenizer_of(found, tokenizer)
    ctx = ctx or min(found.n_ctx or MOST_CTX, MOST_CTX)
    stored_as = None if frozen else dtype
    converted = convert.convert(
        found, output, batch=batch, ctx=ctx, tokenizer=chosen.tokenizer if chosen else None, dtype=stored_as
    )
    say(_summary(output, found, converted.graph, chosen))
    if chosen is not None:
        say(_of_tokenizer(chosen))
    if checkpoint is not None:
        kept = convert.keep_moments(found, output, checkpoint)
        say(f"{checkpoint}: the optimiser's state after {kept.n_steps:,} steps{_settings(kept)}")
    for line in (*found.notes, *_advice(converted, found, chosen, without)):
        say(line, err=True)


def tokenizer_of(source: ModelSource, given: Path | None) -> Found | None:
    """The tokenizer at a path, else the checkpoint's, completed by what the checkpoint says; None if it has none."""
    try:
        found = source.find_tokenizer() if given is None else find_tokenizer(given, source.config["n_vocab"])
    except GGError as error:
        if given is not None:
            raise
        ways = "--tokenizer FILE takes another, --no-tokenizer converts without"
        raise type(error)(f"{error} ({ways})", offset=error.offset) from None
    if found is None:
        if given is not None:
            raise UsageError(f"{given}: no tokenizer is there")
        return None
    return replace(found, tokenizer=completed(found.tokenizer, source.said))


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


def _summary(path: Path, source: ModelSource, graph: Graph, found: Found | None) -> str:
    n_params = sum(math.prod(map(int, node.shape)) for node in graph.nodes if node.initializer)
    ids = f"tokenizer {found.tokenizer.kind}, {found.tokenizer.n_vocab:,} ids" if found else "no tokenizer"
    types = sorted({node.dtype for node in graph.nodes if node.initializer} - {"f32"})
    frozen = f" (matrices in {', '.join(types)}, not trained)" if types else ""
    return f"{path}: {graph.model} from a {source.kind}, {n_params:,} parameters{frozen}, {ids}"


def _of_tokenizer(found: Found) -> str:
    """Which files it was made of, and what it has."""
    tokenizer = found.tokenizer
    named = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": tokenizer.unk_id, "pad": tokenizer.pad_id}
    tokens = [f"{what} {tokenizer.name_of(token)!r} ({token})" for what, token in named.items() if token is not None]
    others = sorted(tokenizer.end_ids - {tokenizer.eos_id})
    tokens += [f"end too {tokenizer.name_of(token)!r} ({token})" for token in others]
    if tokenizer.adds_bos:
        tokens[0] += " before each text"
    template = "chat template" if tokenizer.chat_template else "no chat template"
    return f"tokenizer: {', '.join([*found.files, f'{found.n_added} added tokens', *tokens, template])}"


def _settings(moments: Moments) -> str:
    """What the run was trained with, where its checkpoint says it."""
    said = ", ".join(f"{name} {value:g}" for name, value in moments.settings.items())
    return f", trained with {said}" if said else ""


def _advice(converted: Converted, source: ModelSource, found: Found | None, without: bool) -> list[str]:
    """What the user should know: a vocabulary that does not fill the model's, and how the model reads plain text."""
    if found is None:
        if without:
            return ["no tokenizer, as asked: weights not checked on text"]
        return [f"no tokenizer ({source.no_tokenizer}): give one with --tokenizer; weights not checked on text"]
    lines = list(found.notes)
    n_missing = source.config["n_vocab"] - found.tokenizer.n_vocab
    if n_missing > 0:
        lines.append(f"the model has {n_missing} ids more than the tokenizer; they are never used")
    result = converted.check
    if result is None:
        return [*lines, f"not checked on text: {converted.unchecked}"]
    text = f"loss on plain English {result.loss:.2f} nats per token, {result.ceiling:.2f} would be guessing"
    if result.passed:
        return [*lines, f"checked: {text}"]
    if result.permuted:
        text += f", {result.reordered:.2f} with rows in another order"
    return [*lines, f"WARNING: {text}: the weights look permuted, or the tokenizer is not this model's"]
