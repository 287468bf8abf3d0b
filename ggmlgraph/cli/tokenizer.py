"""`ggmlgraph tokenizer train|encode|decode|stats`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import click
import numpy as np
from numpy.typing import NDArray

from ggmlgraph.cli.terminal import say, shown
from ggmlgraph.data.documents import Faults, Reading, Split, lines_of, pieces
from ggmlgraph.data.sources import sources_of
from ggmlgraph.errors import DataError
from ggmlgraph.interchange.tokenizer import load_tokenizer
from ggmlgraph.tokenizers.base import TextDecoder, Tokenizer
from ggmlgraph.tokenizers.training import train_tokenizer


def train_command(
    sources: tuple[str, ...],
    output: Path,
    n_vocab: int,
    model: Literal["bpe", "unigram"],
    special: tuple[str, ...],
    character_coverage: float,
    split: Split,
    field: str | None,
    max_bad: int,
) -> None:
    """Train a sentencepiece model on every kind of source."""
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = lines_of(sources, Reading(split, field), Faults(max_bad))
    trained = train_tokenizer(lines, output, model, n_vocab, special=special, character_coverage=character_coverage)
    say(f"{output}: {model} with {trained.n_vocab:,} ids")


def encode_command(tokenizer: Path, sources: tuple[str, ...], split: Split, field: str | None) -> None:
    """A line of ids for each document."""
    chosen = load_tokenizer(tokenizer)
    for text in _documents(sources or ("-",), Reading(split, field)):
        words = (" ".join(map(str, ids.tolist())) for ids in chosen.encode_stream(text) if ids.size)
        for i, part in enumerate(words):
            click.echo(f" {part}" if i else part, nl=False)
        click.echo()


def decode_command(tokenizer: Path, ids: tuple[str, ...]) -> None:
    """The text of ids, given or on standard input."""
    chosen = load_tokenizer(tokenizer)
    decoder = TextDecoder(chosen)
    for word in ids or (word for line in sys.stdin for word in line.split()):
        if not word.isdecimal() or len(word) > 10:
            raise DataError(f"{word[:40]!r} is no token id")
        click.echo(shown(decoder.push(int(word))), nl=False)
    click.echo(shown(decoder.finish()))


def stats_command(tokenizer: Path, sources: tuple[str, ...], split: Split, field: str | None, as_json: bool) -> None:
    """How a tokenizer spells texts."""
    chosen = load_tokenizer(tokenizer)
    n_documents = n_bytes = n_chars = 0
    counts, started = np.zeros(chosen.n_vocab, np.int64), time.perf_counter()
    for document in _documents(sources, Reading(split, field)):
        n_documents += 1

        def counted(document: Iterator[str] = document) -> Iterator[str]:
            nonlocal n_bytes, n_chars
            for text in document:
                n_bytes += len(text.encode("utf-8", "surrogatepass"))
                n_chars += len(text)
                yield text

        for ids in chosen.encode_stream(counted()):
            counts += np.bincount(ids, minlength=chosen.n_vocab)
    found = _stats(chosen, counts, n_documents, n_bytes, n_chars) | {"seconds": time.perf_counter() - started}
    if as_json:
        click.echo(json.dumps(found))
        return
    say(
        f"{found['tokens']:,} tokens of {n_documents:,} documents, {n_bytes:,} bytes, {n_chars:,} characters\n"
        f"{found['bytes_per_token']:.3f} bytes and {found['characters_per_token']:.3f} characters a token; "
        f"{found['tokens_per_character']:.3f} tokens and {found['bytes_per_character']:.3f} bytes a character\n"
        f"{found['ids_used']:,} of {chosen.n_vocab:,} ids are used; {found['unknown']:.2%} of the tokens are unknown, "
        f"{found['bytes']:.2%} are single bytes of characters that have no id\n"
        f"{n_bytes / 1e6 / max(float(found['seconds']), 1e-9):.1f} MB/s by one process"
    )


def _stats(
    tokenizer: Tokenizer, counts: NDArray[np.int64], n_documents: int, n_bytes: int, n_chars: int
) -> dict[str, float]:
    n_tokens = int(counts.sum())
    if not n_tokens:
        raise DataError("there is no text, and so no token")
    partial = sum(int(counts[i]) for i in np.flatnonzero(counts) if _is_part(tokenizer.piece(int(i))))
    return {
        "documents": n_documents, "bytes_of_text": n_bytes, "characters": n_chars, "tokens": n_tokens,
        "bytes_per_token": n_bytes / n_tokens, "characters_per_token": n_chars / n_tokens,
        "tokens_per_character": n_tokens / n_chars, "bytes_per_character": n_bytes / n_chars,
        "ids_used": int(np.count_nonzero(counts)), "bytes": partial / n_tokens,
        "unknown": 0.0 if tokenizer.unk_id is None else int(counts[tokenizer.unk_id]) / n_tokens,
    }  # fmt: skip


def _is_part(piece: bytes) -> bool:
    """Whether it is one byte of a longer character."""
    return len(piece) == 1 and piece[0] >= 0x80


def _documents(sources: tuple[str, ...], how: Reading) -> Iterator[Iterator[str]]:
    faults = Faults(0)
    for source in sources_of(sources):
        stream = pieces(source, how, faults)
        for first in stream:

            def text() -> Iterator[str]:
                piece = first  # noqa: B023
                yield piece.text
                while not piece.ends:
                    piece = next(stream)  # noqa: B023
                    yield piece.text

            yield text()
