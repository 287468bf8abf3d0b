"""What a run on text is trained on: texts, which become a token store beside the run, or stores, alone or mixed.

Used by whoever begins a run. A run that goes on needs its text no more where its tokens are beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.data.mixture import PROPORTIONS, MixtureData
from ggmlgraph.data.others import old_digest, open_old, open_tokens
from ggmlgraph.data.prepare import keep, prepared, reopen
from ggmlgraph.data.sources import sources_of
from ggmlgraph.data.store import TokenStore
from ggmlgraph.data.text import TextData
from ggmlgraph.errors import DataError, UsageError
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.training.config import TrainConfig
from ggmlgraph.training.loop import TrainingData, origin_of

_PART = re.compile(r"(?P<name>[^=:]+)(?:=(?P<weight>[^:]*))?:(?P<spec>.+)", re.DOTALL)


def text_data(
    config: TrainConfig, tokenizer: Tokenizer, folder: Path, *, n_vocab: int | None, start: Path | None, anew: bool
) -> tuple[TrainingData, str]:
    """What the options name, and a line that tells of it. folder: where token stores are kept.

    start: the checkpoint that is gone on from; anew: read the texts, even where its tokens are there.
    Raises DataError, UsageError.
    """
    nbytes = np.zeros(max(tokenizer.n_vocab, n_vocab or 0), np.int64)
    nbytes[: tokenizer.n_vocab] = [len(tokenizer.piece(i)) for i in range(tokenizer.n_vocab)]
    open_ = _Opening(config, tokenizer, folder, n_vocab, nbytes)
    if config.mix:
        if config.data or config.val_data:
            raise UsageError("--mix names its texts itself: give it, or --data")
        return open_.mixture()
    before = None if anew or start is None or config.val_data else _before(start, tokenizer, folder)
    tokens = before or open_.store(config.data, start)
    validation = open_.store(config.val_data, None) if config.val_data else None
    data = open_.data(tokens, validation)
    told = f"text     {tokens.name}: {data.n_train:,} tokens to train on, {data.n_val:,} to validate"
    if tokens.n_unknown:
        told += f"; {tokens.unknown:.2%} of the tokens are unknown to the tokenizer"
    return data, told


def _before(start: Path, tokenizer: Tokenizer, folder: Path) -> TokenStore | None:
    """What a run was trained on so far; None if that is not there."""
    digest = origin_of(start).data
    for each in (folder, start.absolute().parent / folder.name):
        if store := reopen(each, digest):
            _check(store, tokenizer)
            return store if each == folder else keep(store, folder)
        if (old := each / f"{digest}.tokens").exists():
            return open_old(old)
    return None


def _check(store: TokenStore, tokenizer: Tokenizer) -> None:
    """Raises DataError if a store is of another tokenizer."""
    theirs = store.tokenizer()
    if theirs is not None and (theirs.kind, theirs.payload()) != (tokenizer.kind, tokenizer.payload()):
        raise DataError(f"{store.name} was made with another tokenizer than the model's")


class _Opening:
    """Opens what a run's options name."""

    def __init__(
        self, config: TrainConfig, tokenizer: Tokenizer, folder: Path, n_vocab: int | None, nbytes: NDArray[np.int64]
    ) -> None:
        self._config, self._tokenizer, self._folder = config, tokenizer, folder
        self._n_vocab, self._nbytes = n_vocab, nbytes

    def store(self, specs: Sequence[str], start: Path | None) -> TokenStore:
        """Stores as they are, or texts as one."""
        store = open_tokens(specs)
        if store is not None:
            _check(store, self._tokenizer)
            return store
        if start is not None:  # which may be of a run before there were stores
            old = self._folder / f"{old_digest(sources_of(specs), self._tokenizer)}.tokens"
            if old.exists():
                return open_old(old)
        return prepared(specs, self._tokenizer, self._folder)

    def data(self, tokens: TokenStore, validation: TokenStore | None, stream: str = "data") -> TextData:
        """Windows of a store."""
        return TextData(
            tokens, self._config.ctx, self._config.seed, n_vocab=self._n_vocab, validation=validation,
            nbytes=self._nbytes, stream=stream,
        )  # fmt: skip

    def mixture(self) -> tuple[MixtureData, str]:
        """Several texts, as --mix and --proportions say."""
        known = PROPORTIONS.get(self._config.proportions or "", {})
        parts: dict[str, TextData] = {}
        weights: dict[str, float] = {}
        for word in self._config.mix:
            name, weight, spec = _part(word, known)
            if name in parts:
                raise UsageError(f"--mix {word}: there are two parts of the name {name}")
            parts[name], weights[name] = self.data(self.store([spec], None), None, f"data {name}"), weight
        mixed, total = MixtureData(parts, weights), sum(weights.values())
        shares = ", ".join(f"{name} {weights[name] / total:.2%} of {part.n_train:,}" for name, part in parts.items())
        return mixed, f"texts    {shares} tokens; {mixed.n_val:,} to validate"


def _part(word: str, known: dict[str, float]) -> tuple[str, float, str]:
    """Name, weight and source of NAME=WEIGHT:SOURCE. Raises UsageError."""
    found = _PART.fullmatch(word)
    if found is None:
        raise UsageError(f"--mix {word}: expected NAME=WEIGHT:SOURCE")
    if found["weight"] is None:
        if found["name"] not in known:
            names = f"; --proportions has {', '.join(known)}" if known else ", or --proportions"
            raise UsageError(f"--mix {word}: give its weight, NAME=WEIGHT:SOURCE{names}")
        return found["name"], known[found["name"]], found["spec"]
    try:
        weight = float(found["weight"])
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise UsageError(f"--mix {word}: the weight {found['weight']!r} is no number above 0")
    return found["name"], weight, found["spec"]
