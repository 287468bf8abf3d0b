"""`ggmlgraph export MODEL [FIELD=VALUE]… -o graph.bin`."""

from __future__ import annotations

import math
from pathlib import Path

from ggmlgraph.amounts import nbytes
from ggmlgraph.cli.terminal import say
from ggmlgraph.errors import DataError, UsageError
from ggmlgraph.interchange.tokenizer import load_tokenizer
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tokenizers.plain import BytesTokenizer, CharsTokenizer
from ggmlgraph.tracing import architectures
from ggmlgraph.tracing.tracer import Graph, trace


def command(
    name: str,
    fields: tuple[str, ...],
    output: Path | None,
    tokenizer: Path | None,
    batch: int,
    ctx: int,
    seed: int,
    dialect: str,
    show: bool,
) -> None:
    """Write MODEL as a ggml compute graph with fresh weights."""
    if output is None and not show:
        raise UsageError("nothing to do: give -o FILE or --print")
    loaded = architectures.load(name)
    values = architectures.parse_fields(loaded, fields)
    chosen = _tokenizer(tokenizer, loaded, values)
    if chosen and "n_vocab" in architectures.field_types(loaded):
        values.setdefault("n_vocab", chosen.n_vocab)
    graph = architectures.run(loaded, lambda: trace(loaded.loss, architectures.config(loaded, values), batch, ctx))
    if tokenizer is None and not any(node.feed == "tokens" for node in graph.nodes):
        chosen = None  # it takes no text
    _check_vocabulary(graph, chosen)
    graph.check_gradient()
    if show:
        say(str(graph))
    if output is not None:
        leaf = chosen.to_bytes() if chosen else None
        graph.save(output, seed=seed, tokenizer=leaf, corpus=loaded.corpus, dialect=dialect)
        say(_summary(output, graph, chosen), err=show)
        if graph.fixed:
            say(f"batch {batch} and ctx {ctx} are fixed: {graph.fixed}", err=True)


def _tokenizer(path: Path | None, loaded: architectures.Architecture, values: dict[str, object]) -> Tokenizer | None:
    """The one given, else the model's own, else bytes; None for a vocabulary that bytes do not have."""
    if path is not None:
        return load_tokenizer(path)
    if loaded.tokenizer is not None:
        kind, _, alphabet = loaded.tokenizer.partition(":")
        if kind != CharsTokenizer.kind:
            raise UsageError(f"{loaded.name}: TOKENIZER must be chars:ALPHABET, not {loaded.tokenizer!r}")
        return CharsTokenizer(alphabet)
    return BytesTokenizer() if values.get("n_vocab", BytesTokenizer.n_vocab) == BytesTokenizer.n_vocab else None


def _check_vocabulary(graph: Graph, tokenizer: Tokenizer | None) -> None:
    n_vocab = next((int(node.shape[-1]) for node in graph.nodes if node.name == "logits"), None)
    if tokenizer is not None and n_vocab is not None and tokenizer.n_vocab > n_vocab:
        raise DataError(f"the tokenizer has {tokenizer.n_vocab} ids, the model's n_vocab is {n_vocab}")


def _summary(path: Path, graph: Graph, tokenizer: Tokenizer | None) -> str:
    n_params = sum(math.prod(map(int, node.shape)) for node in graph.nodes if node.initializer)
    takes_text = any(node.feed == "tokens" for node in graph.nodes)
    ids = f"tokenizer {tokenizer.kind}, {tokenizer.n_vocab:,} ids" if tokenizer else "no tokenizer"
    ids += " (train --tokenizer)" if takes_text and not tokenizer else ""
    size = nbytes(path.stat().st_size)
    return f"{path}: {graph.model}, {n_params:,} parameters, {len(graph.nodes)} nodes, {size}, {ids}"
