"""`ggmlgraph convert SRC -o graph.bin`."""

from __future__ import annotations

import math
from pathlib import Path

import click

from ggmlgraph import convert, model, sources
from ggmlgraph import tokenizer as tokenizers
from ggmlgraph.encoding import ENCODED
from ggmlgraph.errors import UsageError
from ggmlgraph.sources import Source
from ggmlgraph.sources.ggml import ORDERS
from ggmlgraph.sources.source import scalar
from ggmlgraph.tokenizer import Tokenizer
from ggmlgraph.tracer import Graph

DEFAULT_CTX = 512  # at most, however far the model looks back


@click.command()
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("fields", metavar="[FIELD=VALUE]...", nargs=-1)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False),
              help="The graph file to write.")  # fmt: skip
@click.option("--model", "name", metavar="MODEL", help="Of tensors without a configuration: as `export` takes it.")
@click.option("--checkpoint", type=click.Path(path_type=Path), metavar="DIR",
              help="Also keep the optimiser's state of a training run, for `train --init-from DIR`.")  # fmt: skip
@click.option("--moment-order", "order", type=click.Choice(list(ORDERS)),
              help="Of a GGUF checkpoint of llama.cpp's trainer: the evaluation order that it printed.")  # fmt: skip
@click.option("--tokenizer", type=click.Path(path_type=Path),
              help="A sentencepiece model, tokenizer.json or tokenizer.bin.  [default: the checkpoint's]")  # fmt: skip
@click.option("--batch", type=click.IntRange(1, 1 << 20), default=16, show_default=True,
              help="Windows per batch; training may choose another.")  # fmt: skip
@click.option("--ctx", type=click.IntRange(1, 1 << 20),
              help=f"Tokens per window; training may choose another.  [default: the model's, at most {DEFAULT_CTX}]",
              )  # fmt: skip
@click.option("--dtype", type=click.Choice(["f32", *ENCODED]), default="f32", show_default=True,
              help="Of matrices and tables in OUTPUT. Only f32 is trained.")  # fmt: skip
@click.option("--frozen", is_flag=True,
              help="Keep half-precision and quantised matrices and tables as they are, not to be trained.")  # fmt: skip
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
    """Write a checkpoint of another program as a graph file with its weights.

    SRC is a Hugging Face folder, a Meta checkpoint (consolidated.00.pth and params.json), a GGUF file, a checkpoint of
    LitGPT, Lit-LLaMA, nanoGPT, llama2.c or llama.cpp's old trainer, of the models that `ggmlgraph models` lists; or,
    with --model, a file of tensors only. Weights become float32, quantised ones too, unless --dtype or --frozen says
    otherwise. FIELD=VALUE sets a field of the model's config that SRC does not say. Nothing in SRC is run.
    """
    if frozen and dtype != "f32":
        raise UsageError("--frozen keeps types as they are: leave --dtype out")
    found = _found(source, name, fields, order)
    chosen = found.tokenizer if tokenizer is None else tokenizers.load(tokenizer)
    ctx = ctx or min(found.n_ctx or DEFAULT_CTX, DEFAULT_CTX)
    stored_as = None if frozen else dtype
    graph = convert.convert(found, output, batch=batch, ctx=ctx, tokenizer=chosen, dtype=stored_as)
    click.echo(_summary(output, found, graph, chosen))
    if checkpoint is not None:
        convert.keep_moments(found, output, checkpoint)
        click.echo(f"{checkpoint}: the optimiser's state after {found.moments.n_steps:,} steps")  # type: ignore[union-attr]
    for line in _advice(output, found, chosen):
        click.echo(line, err=True)


def _found(source: Path, name: str | None, fields: tuple[str, ...], order: str | None) -> Source:
    if name is None:
        pairs = [field.partition("=") for field in fields]
        if wrong := next((field for field in fields if "=" not in field), None):
            raise UsageError(f"{wrong!r} is not FIELD=VALUE")
        return sources.find(source, {field: scalar(text) for field, _, text in pairs}, order)
    loaded = model.load(name)
    values = model.parse_fields(loaded, fields)
    architecture = loaded.path.stem if loaded.built_in else name
    return sources.of_model(source, architecture, {**model.defaults(loaded), **values})


def _summary(path: Path, source: Source, graph: Graph, tokenizer: Tokenizer | None) -> str:
    n_params = sum(math.prod(map(int, node.shape)) for node in graph.nodes if node.initializer)
    ids = f"tokenizer {tokenizer.kind}, {tokenizer.n_vocab:,} ids" if tokenizer else "no tokenizer"
    types = sorted({node.dtype for node in graph.nodes if node.initializer} - {"f32"})
    frozen = f" (matrices in {', '.join(types)}, not trained)" if types else ""
    return f"{path}: {graph.model} from a {source.kind}, {n_params:,} parameters{frozen}, {ids}"


def _advice(path: Path, source: Source, tokenizer: Tokenizer | None) -> list[str]:
    """What the user should know: a vocabulary that does not fill the model's, and how the model reads plain text."""
    if tokenizer is None:
        return [f"no tokenizer ({source.no_tokenizer}): give one with --tokenizer; weights not checked on text"]
    lines = []
    n_vocab = source.config["n_vocab"]
    if tokenizer.n_vocab < n_vocab:
        lines.append(f"the model has {n_vocab - tokenizer.n_vocab} ids more than the tokenizer; they are never used")
    result = convert.check(path, tokenizer)
    if result is None:
        return [*lines, "not checked on text: too little memory"]
    text = f"loss on plain English {result.loss:.2f} nats per token, {result.ceiling:.2f} would be guessing"
    if result.passed:
        return [*lines, f"checked: {text}"]
    if result.permuted:
        text += f", {result.reordered:.2f} with rows in another order"
    return [*lines, f"WARNING: {text}: the weights look permuted, or the tokenizer is not this model's"]
