"""Low-rank adapters as a user asks for them: which weights, of what rank, from which first values.

Hu et al. 2021 (LoRA): y = W x + s B A x with s = alpha / rank; Kalajdzievski 2023 (rsLoRA): s = alpha / sqrt(rank).
Used by `basis`, which rewrites the graph, and by `ggmlgraph finetune`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ggmlgraph.errors import UsageError
from ggmlgraph.finetuning import targets
from ggmlgraph.graphfile.lowrank import LowRank, Weight, names, shapes
from ggmlgraph.graphfile.metadata import LEAST_RATE, MOST_RATE, Adapter
from ggmlgraph.tracing import initializers
from ggmlgraph.tracing.initializers import Initializer

MOST = 1 << 16  # ranks
KAIMING, GAUSSIAN = "kaiming", "gaussian"


@dataclass(frozen=True)
class LoRA:
    """What to adapt, and how: the fields of `finetune --lora`.

    r: the rank. alpha: scale times rank. targets: words of targets.py. exclude: words whose weights are left out.
    ranks, alphas: a word and the rank or alpha of its weights, the first that fits counts. layers: numbers of the only
    layers to adapt. dropout: of what an adapter is given. init: "kaiming" (A uniform within 1 / sqrt(columns), as PEFT
    does by default) or "gaussian" (normal, std 1 / rank); B begins at 0, so that the first loss is the base's.
    """

    r: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = (targets.ALL_LINEAR,)
    exclude: tuple[str, ...] = ()
    rslora: bool = False
    ranks: tuple[tuple[str, int], ...] = ()
    alphas: tuple[tuple[str, float], ...] = ()
    layers: tuple[int, ...] = ()
    dropout: float = 0.0
    init: str = KAIMING

    def __post_init__(self) -> None:
        for name, rank in (("r", self.r), *((f"ranks={word}", rank) for word, rank in self.ranks)):
            if not 1 <= rank <= MOST:
                raise UsageError(f"{name}: a rank of {rank} is not in 1..{MOST}")
        for name, alpha in (("alpha", self.alpha), *((f"alphas={word}", alpha) for word, alpha in self.alphas)):
            if not (math.isfinite(alpha) and 0 < alpha <= 1e6):
                raise UsageError(f"{name}: {alpha} is not a number above 0 and at most 1e6")
        if self.dropout and not LEAST_RATE <= self.dropout <= MOST_RATE:
            raise UsageError(f"dropout: {self.dropout} is not a number from 0 to below 1")
        if self.init not in (KAIMING, GAUSSIAN):
            raise UsageError(f"init: {self.init!r} is not {KAIMING} or {GAUSSIAN}")

    def of(self, weight: Weight) -> Adapter:
        """Rank and alpha of a weight's adapter."""
        rank = next((rank for word, rank in self.ranks if targets.matches(weight.name, word)), self.r)
        alpha = next((alpha for word, alpha in self.alphas if targets.matches(weight.name, word)), self.alpha)
        return Adapter(rank, alpha)

    def chosen(self, weights: Mapping[str, Weight], head: str | None) -> dict[str, Adapter]:
        """The adapters of a graph by the names of its weights; all-linear leaves out those too small for their rank,
        such as routers of experts. Raises UsageError for words that mean none, and ranks that do not fit."""
        found = targets.choose(weights, self.targets, head, self.exclude)
        for layer in self.layers:
            if not any(targets.layer_of(name) == layer for name in found):
                raise UsageError(f"layers: there is nothing to adapt in layer {layer}")
        for field, pairs in (("ranks", self.ranks), ("alphas", self.alphas)):
            for word, _ in pairs:
                if not any(targets.matches(name, word) for name in found):
                    raise UsageError(
                        f"{field}: no adapted matrix is called {word!r}; there are {targets.listed(found)}"
                    )
        kept = [name for name in found if not self.layers or targets.layer_of(name) in self.layers]
        adapters = {name: self.of(weights[name]) for name in kept}
        large = {name: own for name, own in adapters.items() if own.rank <= min(weights[name].shape)}
        small = next((name for name in adapters if name not in large), None)
        if small and any(word.lower() != targets.ALL_LINEAR for word in self.targets):
            raise UsageError(f"rank {adapters[small].rank} does not fit {small}, which is {list(weights[small].shape)}")
        if not large:
            what = f"no matrix has a rank of {self.r}" if kept else "nothing is left to adapt"
            raise UsageError(f"targets: {what}")
        return large


def parse(fields: Iterable[str]) -> LoRA:
    """FIELD=VALUE words; lists by commas, `ranks` and `alphas` as WORD:NUMBER. Raises UsageError."""
    values: dict[str, Any] = {}
    for field in fields:
        name, equals, text = field.partition("=")
        if not equals or name not in FIELDS:
            raise UsageError(f"{field!r} is not FIELD=VALUE with a FIELD of {', '.join(FIELDS)}")
        if name in values:
            raise UsageError(f"{name} is given twice")
        try:
            values[name] = FIELDS[name](text)
        except ValueError:
            raise UsageError(f"{field}: {WANTED.get(name, 'a number')} is wanted") from None
    return LoRA(**values)


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise ValueError
    return words


def _pairs(number: Callable[[str], Any]) -> Callable[[str], tuple[tuple[str, Any], ...]]:
    def parse_pairs(text: str) -> tuple[tuple[str, Any], ...]:
        parts = [word.rpartition(":") for word in _words(text)]
        if not all(word for word, _, _ in parts):
            raise ValueError
        return tuple((word, number(value)) for word, _, value in parts)

    return parse_pairs


def _numbers(text: str) -> tuple[int, ...]:
    """ "0,2,4-7"."""
    found: list[int] = []
    for word in _words(text):
        first, _, last = word.partition("-")
        begin, end = int(first), int(last or first)
        if not 0 <= begin <= end < MOST:
            raise ValueError
        found += range(begin, end + 1)
    return tuple(found)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


FIELDS: dict[str, Callable[[str], Any]] = {
    "r": int, "alpha": float, "targets": _words, "exclude": _words, "rslora": _truth, "ranks": _pairs(int),
    "alphas": _pairs(float), "layers": _numbers, "dropout": float, "init": str,
}  # fmt: skip
WANTED = {
    "r": "a whole number", "targets": "a list of names", "exclude": "a list of names", "rslora": "true or false",
    "ranks": "WORD:NUMBER", "alphas": "WORD:NUMBER", "layers": "a list of numbers, such as 0,2,4-7",
}  # fmt: skip


# ---------------------------------------------------------------- first values


def adapters(
    weights: Mapping[str, Weight], chosen: Mapping[str, Adapter], lora: LoRA, scale: Callable[[str], float], seed: int
) -> dict[str, LowRank]:
    """The adapters with their first values, which follow from the seed and their names alone."""
    made = {}
    for name, adapter in chosen.items():
        first = _initializers(weights[name].kind, lora.init, adapter.rank)
        a, b = (
            _stream(init, own, shape, seed)
            for init, own, shape in zip(first, names(name), shapes(weights[name], adapter.rank), strict=True)
        )
        made[name] = LowRank(adapter.rank, scale(name), a, b, lora.dropout)
    return made


def _initializers(kind: str, init: str, rank: int) -> tuple[Initializer, Initializer]:
    """Of A and of B; of a table, as PEFT has it, A begins at 0."""
    if kind == "table":
        return initializers.zeros(), initializers.normal(1.0)
    first = initializers.kaiming_uniform(math.sqrt(5)) if init == KAIMING else initializers.normal(1.0 / rank)
    return first, initializers.zeros()


def _stream(init: Initializer, name: str, shape: tuple[int, int], seed: int) -> Callable[[], Iterator[memoryview]]:
    return lambda: (values.data.cast("B") for values in init.chunks(name, shape, seed))
