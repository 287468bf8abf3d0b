"""`ggmlgraph eval MODEL --text FILE`, `ggmlgraph eval MODEL --choices FILE.jsonl`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import click

from ggmlgraph.cli.told import told
from ggmlgraph.core.limits import Limits
from ggmlgraph.errors import UsageError
from ggmlgraph.finetuning.attaching import open_with
from ggmlgraph.generation.evaluate import Accuracy, Perplexity, accuracy, perplexity, read_questions
from ggmlgraph.interchange.ondemand import graph_of

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 2.0


def command(
    path: Path,
    adapters: tuple[str, ...],
    text: str | None,
    choices: Path | None,
    ctx: int | None,
    stride: int | None,
    as_json: bool,
    threads: int | None,
    limits: Limits,
) -> None:
    """Measure a model: perplexity on a text, as llama.cpp defines it, or accuracy on multiple-choice questions."""
    if (text is None) == (choices is None):
        raise UsageError("give either --text or --choices")
    if choices is not None and stride is not None:
        raise UsageError("--stride is for --text")
    questions = None if choices is None else read_questions(choices)
    runtime, tokenizer = open_with(graph_of(path, told), adapters, threads=threads, ctx=ctx, limits=limits)
    with runtime:
        if questions is not None:
            right = _last(accuracy(runtime, tokenizer, questions), _accuracy_line)
            click.echo(_json(_accuracy_fields(right)) if as_json else _accuracy_line(right))
        elif text is not None:
            found = _last(perplexity(runtime, tokenizer, text, stride), _perplexity_line)
            click.echo(_json(_perplexity_fields(found)) if as_json else _perplexity_line(found))


def _json(fields: Mapping[str, float]) -> str:
    """One line of JSON, which has no word for what is not finite: null."""
    return json.dumps({name: value if math.isfinite(value) else None for name, value in fields.items()})


def _last(results: Iterable[T], line: Callable[[T], str]) -> T:
    """The last of the results; a line on stderr every few seconds until then."""
    told = time.monotonic()
    result = None
    for result in results:
        if time.monotonic() - told > SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            click.echo(line(result), err=True)
    assert result is not None
    return result


def _perplexity_line(p: Perplexity) -> str:
    return (
        f"perplexity {p.value:.4f} +/- {p.error:.4f}, {p.loss:.4f} nats per token, {p.bits_per_byte:.4f} bits per byte "
        f"over {p.n_tokens:,} tokens ({p.n_windows} of {p.of_windows} windows)"
    )


def _perplexity_fields(p: Perplexity) -> dict[str, float]:
    return {
        "perplexity": p.value,
        "error": p.error,
        "loss": p.loss,
        "bits_per_byte": p.bits_per_byte,
        "tokens": p.n_tokens,
        "windows": p.n_windows,
    }


def _accuracy_line(a: Accuracy) -> str:
    return (
        f"accuracy {a.value:.4f} +/- {a.error(a.value):.4f}, by length {a.by_length:.4f} +/- "
        f"{a.error(a.by_length):.4f} ({a.n} of {a.of} questions)"
    )


def _accuracy_fields(a: Accuracy) -> dict[str, float]:
    return {
        "accuracy": a.value,
        "error": a.error(a.value),
        "accuracy_by_length": a.by_length,
        "error_by_length": a.error(a.by_length),
        "questions": a.n,
    }
