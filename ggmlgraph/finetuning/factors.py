"""An adapter's values and what they mean: of a run, or read from another program's file. Used by what reads and writes
adapters, and by `merging`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.errors import FormatError, UnsupportedError, UsageError
from ggmlgraph.finetuning.basis import Opened
from ggmlgraph.graphfile import lowrank
from ggmlgraph.graphfile.lowrank import Kind, Weight
from ggmlgraph.graphfile.metadata import Adapter, Finetuned


@dataclass(frozen=True)
class Factors:
    """Of one weight, as lowrank.py shapes them: the weight's change is `scale` b a, of a table scale a b^T."""

    kind: Kind
    a: NDArray[np.float32]
    b: NDArray[np.float32]
    alpha: float
    scale: float

    @property
    def rank(self) -> int:
        return int(self.b.shape[1])

    def change(self, first: int, last: int) -> NDArray[np.float32]:
        """What rows [first, last) of the weight change by, float32."""
        left, right = (self.b, self.a) if self.kind == "matrix" else (self.a, self.b.T)
        return np.asarray((left[first:last] * np.float32(self.scale)) @ right, np.float32)


@dataclass(frozen=True)
class Adapters:
    """A whole adapter: its weights by our names, and what was asked for when it was made."""

    of: Mapping[str, Factors]
    rank: int
    alpha: float
    rslora: bool = False
    dropout: float = 0.0
    initializer: str = ""

    def said(self, base: str, frozen: Iterable[str]) -> Finetuned:
        """What the metadata of a graph with these adapters say."""
        return Finetuned(
            base=base, rank=self.rank, alpha=self.alpha, rslora=self.rslora, dropout=self.dropout,
            initializer=self.initializer, frozen=tuple(frozen),
            adapters={name: Adapter(own.rank, own.alpha) for name, own in self.of.items()},
        )  # fmt: skip


def scale_of(rank: int, alpha: float, *, rslora: bool) -> float:
    """What the product of an adapter is multiplied by."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def said_of(opened: Opened) -> Finetuned:
    """What the metadata say of adapters. Raises UsageError if there are none."""
    said = opened.meta.finetuned
    if said is None or not said.adapters:
        raise UsageError(f"{opened.path} has no adapters")
    return said


def adapters_of(opened: Opened) -> Adapters:
    """The adapters of a graph. Raises UsageError if there are none, FormatError."""
    said, weights = said_of(opened), opened.matrices()
    found = {}
    for name, adapter in said.adapters.items():
        if name not in weights:
            raise FormatError(f"{opened.path}: {name!r} is said to have an adapter, but is no matrix of the graph")
        own = zip(lowrank.names(name), lowrank.shapes(weights[name], adapter.rank), strict=True)
        a, b = (_values(opened, factor, shape) for factor, shape in own)
        found[name] = Factors(weights[name].kind, a, b, adapter.alpha, said.scale(name))
    most = next(iter(said.adapters.values()))
    return Adapters(found, said.rank or most.rank, said.alpha or most.alpha, said.rslora, said.dropout,
                    said.initializer)  # fmt: skip


def check_alone(opened: Opened) -> None:
    """Raise UnsupportedError if more than adapters is trained, which a file of adapters does not hold."""
    own = {factor for name in said_of(opened).adapters for factor in lowrank.names(name)}
    other = next((r.name for r in opened.records if r.is_param and r.name not in own), None)
    if other is not None:
        raise UnsupportedError(
            f"{opened.path}: {other} is trained too, which no file of adapters holds: export the whole model, or merge"
        )


def _values(opened: Opened, name: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    if name not in opened.places:
        raise FormatError(f"{opened.path}: {name!r} is not there")
    stored = opened.stored(Weight(name, "matrix", shape, "f32"))
    return np.concatenate(list(stored.chunks())).reshape(shape)


def joined(parts: Iterable[tuple[Adapters, float]]) -> Adapters:
    """Several adapters as one, each times a number: their factors side by side, which changes nothing but rounding.

    One alone, times 1, is as it is.
    """
    listed = list(parts)
    if len(listed) == 1 and listed[0][1] == 1:
        return listed[0][0]
    together: dict[str, Factors] = {}
    for name in dict.fromkeys(name for adapters, _ in listed for name in adapters.of):
        own = [(adapters.of[name], times) for adapters, times in listed if name in adapters.of]
        kind = own[0][0].kind
        b = np.concatenate([f.b * np.float32(f.scale * times) for f, times in own], 1)
        a = np.concatenate([f.a for f, _ in own], 0 if kind == "matrix" else 1)
        together[name] = Factors(kind, a, b, float(b.shape[1]), 1.0)
    rank = max(f.rank for f in together.values())
    return Adapters(together, rank, float(rank))
