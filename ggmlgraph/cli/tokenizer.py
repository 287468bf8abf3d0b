"""`ggmlgraph tokenizer train FILE… -o tokenizer.model`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ggmlgraph.cli.terminal import say
from ggmlgraph.data.corpus import lines_of
from ggmlgraph.tokenizers.training import train_tokenizer


def command(sources: tuple[str, ...], output: Path, n_vocab: int, model: Literal["bpe", "unigram"]) -> None:
    """Train a sentencepiece model on UTF-8 texts."""
    output.parent.mkdir(parents=True, exist_ok=True)
    trained = train_tokenizer(lines_of(sources), output, model, n_vocab)
    say(f"{output}: {model} with {trained.n_vocab:,} ids")
