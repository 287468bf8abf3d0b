"""`ggmlgraph data prepare|stats|show`: texts become a token store, and what is in one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import msgspec
import numpy as np

from ggmlgraph.amounts import nbytes
from ggmlgraph.cli.terminal import say, shown
from ggmlgraph.data.documents import Reading, Skipped, Split
from ggmlgraph.data.others import open_tokens
from ggmlgraph.data.prepare import Plan, Told, prepare
from ggmlgraph.data.store import Report, TokenStore
from ggmlgraph.errors import DataError, UsageError
from ggmlgraph.interchange.tokenizer import load_tokenizer
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tokenizers.plain import BytesTokenizer

SECONDS_BETWEEN_LINES = 5.0
NO_END = "none"
_SHOWN = 8  # sources with something skipped that are told one by one


def prepare_command(
    sources: tuple[str, ...],
    output: Path,
    tokenizer: Path | None,
    split: Split,
    field: str | None,
    end: str | None,
    deduplicate: bool,
    max_bad: int,
    processes: int | None,
) -> None:
    """Write a token store."""
    chosen = BytesTokenizer() if tokenizer is None else load_tokenizer(tokenizer)
    plan = Plan(Reading(split, field), _end(end, chosen), deduplicate, max_bad)
    if processes is not None:
        plan = Plan(plan.reading, plan.end, deduplicate, max_bad, processes)
    started = time.monotonic()
    store = prepare(sources, chosen, output, plan, _Progress())
    seconds = time.monotonic() - started
    for line in _lines(store):
        say(line)
    rate = nbytes(sum(each.nbytes for each in _reports(store)) / max(seconds, 1e-9))
    say(f"{rate}/s by {plan.n_processes} processes; try: ggmlgraph train GRAPH --data {output}")


def _end(name: str | None, tokenizer: Tokenizer) -> int | None:
    """The token that ends documents. Raises UsageError."""
    if name is None:
        if tokenizer.eos_id is None:
            say("the tokenizer has no end-of-text token: documents follow one another without one", err=True)
        return tokenizer.eos_id
    if name == NO_END:
        return None
    found = int(name) if name.isdecimal() and len(name) < 10 else tokenizer.token_named(name)
    if found is None or found >= tokenizer.n_vocab:
        raise UsageError(f"--end {name}: the tokenizer has no such token; {NO_END} puts nothing between documents")
    return found


class _Progress:
    """A line every few seconds."""

    def __init__(self) -> None:
        self._started = self._told = time.monotonic()

    def __call__(self, told: Told) -> None:
        now = time.monotonic()
        if now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            rate = nbytes(told.nbytes / (now - self._started))
            say(f"{told.n_tokens:,} tokens of {nbytes(told.nbytes)}, {rate}/s, at {told.source}", err=True)


# ---------------------------------------------------------------- what is in a store


def stats_command(path: str, as_json: bool, verify: bool) -> None:
    """What a store has."""
    store = _open(path)
    if verify:
        store.verify()
    if as_json:
        click.echo(json.dumps(_facts(store)))
        return
    for line in _lines(store):
        say(line)
    if verify:
        say("every byte is what was written" if store.manifest else "every token can be read")


def show_command(path: str, first: int, n: int, ids: bool) -> None:
    """Documents of a store, as text or as ids."""
    store = _open(path)
    tokenizer = store.tokenizer()
    ends = store.documents.astype(np.int64)
    if first < 1 or first > max(1, len(ends)):
        raise UsageError(f"--first {first}: there are documents 1 to {len(ends)}")
    starts = np.concatenate([[0], ends])
    for i in range(first - 1, min(first - 1 + n, len(ends)) if len(ends) else 1):
        begin, end = int(starts[i]), int(ends[i]) if len(ends) else min(store.n_tokens, 1024)
        found = store.at(np.array([begin]), end - begin)[0]
        say(f"document {i + 1}: {end - begin:,} tokens")
        if ids or tokenizer is None:
            click.echo(" ".join(map(str, found.tolist())))
        else:
            click.echo(shown(tokenizer.decode(found.tolist())))


def _open(path: str) -> TokenStore:
    store = open_tokens([path])
    if store is None:
        raise DataError(f"{path}: no token store" if Path(path).exists() else f"{path}: no such file or folder")
    return store


def _reports(store: TokenStore) -> list[Report]:
    return store.manifest.sources if store.manifest else []


def _facts(store: TokenStore) -> dict[str, object]:
    reports = _reports(store)
    return {
        "tokens": store.n_tokens, "vocabulary": store.n_vocab, "digest": store.digest, "unknown": store.n_unknown,
        "documents": sum(each.n_documents for each in reports), "bytes": sum(each.nbytes for each in reports),
        "characters": sum(each.n_chars for each in reports), "sources": msgspec.to_builtins(reports),
    }  # fmt: skip


def _lines(store: TokenStore) -> list[str]:
    """A store, for people."""
    reports = _reports(store)
    files = f"{len(store.files)} {'file' if len(store.files) == 1 else 'files'}"
    found = [f"{store.path}: {store.n_tokens:,} tokens in {files}"]
    if not reports:
        return found
    n_bytes, n_chars = sum(each.nbytes for each in reports), sum(each.n_chars for each in reports)
    documents = sum(each.n_documents for each in reports)
    found[0] += f", {documents:,} documents of {len(reports)} {'source' if len(reports) == 1 else 'sources'}"
    found.append(
        f"{n_bytes:,} bytes, {n_chars:,} characters: {n_bytes / store.n_tokens:.3f} bytes a token, "
        f"{store.n_tokens / max(1, n_chars):.3f} tokens and {n_bytes / max(1, n_chars):.3f} bytes a character"
    )
    if store.n_unknown:
        found.append(f"{store.unknown:.2%} of the tokens are unknown to the tokenizer")
    skipped = [each for each in reports if each.skipped]
    for each in skipped[:_SHOWN]:
        found.append(f"skipped of {each.name}: " + "; ".join(_skipped(why, of) for why, of in each.skipped.items()))
    if len(skipped) > _SHOWN:
        found.append(f"and of {len(skipped) - _SHOWN} more; --json tells all")
    return found


def _skipped(why: str, of: Skipped) -> str:
    return f"{of.n:,} x {why} ({'' if of.n == 1 else 'first '}{of.first})"
