"""Adapters become part of the weights they are beside: W + s B A, on the base as it was trained on, dequantised.

Used by `ggmlgraph merge` and by the exports of whole models.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.errors import FormatError, UsageError
from ggmlgraph.execution.namedgraph import LOGITS
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.finetuning import basis
from ggmlgraph.finetuning.basis import Opened
from ggmlgraph.graphfile import lowrank, metadata
from ggmlgraph.graphfile.lowrank import Weight
from ggmlgraph.graphfile.metadata import Finetuned
from ggmlgraph.graphfile.records import Record, leaf
from ggmlgraph.philox import philox
from ggmlgraph.table.dialect import V2
from ggmlgraph.training import rundir
from ggmlgraph.training.run import Run

CHECKED_CTX = 64  # tokens on which adapters and their merger are compared


@dataclass(frozen=True)
class Factors:
    """An adapter's values, as lowrank.py shapes them: the weight's change is `scale` b a, of a table scale a b^T."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scale: float

    @property
    def rank(self) -> int:
        return int(self.b.shape[1])

    def change(self, kind: str, first: int, last: int) -> NDArray[np.float32]:
        """What rows [first, last) of the weight change by, float32."""
        left, right = (self.b, self.a) if kind == "matrix" else (self.a, self.b.T)
        return np.asarray((left[first:last] * np.float32(self.scale)) @ right, np.float32)


def said_of(opened: Opened) -> Finetuned:
    """What the metadata say of adapters. Raises UsageError if there are none."""
    said = opened.meta.finetuned
    if said is None or not said.adapters:
        raise UsageError(f"{opened.path} has no adapters")
    return said


def factors_of(opened: Opened) -> dict[str, Factors]:
    """The adapters of a graph by name of the weight. Raises UsageError if there are none, FormatError."""
    said, weights = said_of(opened), opened.matrices()
    found = {}
    for name, adapter in said.adapters.items():
        if name not in weights:
            raise FormatError(f"{opened.path}: {name!r} is said to have an adapter, but is no matrix of the graph")
        own = zip(lowrank.names(name), lowrank.shapes(weights[name], adapter.rank), strict=True)
        a, b = (_values(opened, factor, shape) for factor, shape in own)
        found[name] = Factors(a, b, said.scale(name))
    return found


def _values(opened: Opened, name: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    if name not in opened.places:
        raise FormatError(f"{opened.path}: {name!r} is not there")
    stored = opened.stored(Weight(name, "matrix", shape, "f32"))
    return np.concatenate(list(stored.chunks())).reshape(shape)


def merge(path: Path, target: Path) -> Opened:
    """Write the graph of a run, checkpoint or file without its adapters, which its weights then have in them.

    Returns what was opened. Raises UsageError if there are none, FormatError for a weight that is no longer finite.
    """
    opened = basis.open_base(path)
    said, weights = said_of(opened), opened.matrices()
    data = {name: _merged(opened, weights[name], own) for name, own in factors_of(opened).items()}
    records = [*opened.records, *_tokenizer(path, opened)]
    placed = lowrank.remove(records, said.adapters, data, (*said.frozen, *said.adapters), V2)
    kept = {record.name for record in (*placed.leafs, *placed.nodes)}
    meta = opened.meta
    fields: dict[str, Any] = {
        "finetuned": None,
        "where": {name: line for name, line in meta.where.items() if name in kept},
        "dropout": {name: rate for name, rate in meta.dropout.items() if name in kept},
        "ranks": {name: rank for name, rank in meta.ranks.items() if name in kept},
    }
    basis.write_records(target, placed, metadata.updated(opened.text, fields))
    return opened


def _tokenizer(path: Path, opened: Opened) -> list[Record]:
    """The leaf of a tokenizer that a run has beside its graph."""
    run = Run.open(path)
    beside = rundir.tokenizer_path(run.directory) if run.directory else None
    inside = any(record.name == metadata.TOKENIZER_LEAF for record in opened.records)
    return [leaf(metadata.TOKENIZER_LEAF, beside.read_bytes())] if beside and beside.exists() and not inside else []


def _merged(opened: Opened, weight: Weight, factors: Factors) -> Callable[[], Iterator[memoryview]]:
    def chunks() -> Iterator[memoryview]:
        at, columns = 0, weight.shape[1]
        for values in opened.stored(weight).chunks():
            first, last = at // columns, -(-(at + values.size) // columns)
            change = factors.change(weight.kind, first, last).reshape(-1)[at - first * columns :][: values.size]
            merged = values + change
            if not np.isfinite(merged).all():
                raise FormatError(f"{opened.path}: {weight.name} with its adapter has values that are not finite")
            at += values.size
            yield merged.data.cast("B")

    return chunks


@contextmanager
def plain(path: Path) -> Iterator[Path]:
    """The path itself, or a graph without adapters that is made of what is there and goes again."""
    opened = basis.open_base(path)
    if opened.meta.finetuned is None or not opened.meta.finetuned.adapters:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "merged.bin"
        merge(path, made)
        yield made


@dataclass(frozen=True)
class Difference:
    """Between the outputs of a graph with adapters and of its merger, on tokens drawn at random."""

    most: float  # of any logit
    scale: float  # the largest logit


def compare(adapted: Path, merged: Path) -> Difference | None:
    """How far a merger is from the adapters; None for a graph that is no language model."""
    found = []
    for path in (adapted, merged):
        run = Run.open(path)
        with run.runtime() as runtime:
            logits = _logits(runtime)
        if logits is None:
            return None
        found.append(logits)
    return Difference(float(np.abs(found[0] - found[1]).max()), float(np.abs(found[0]).max()))


def _logits(runtime: Runtime) -> NDArray[np.float32] | None:
    inputs: Mapping[str, str] = runtime.metadata.inputs
    n_vocab = runtime.n_vocab
    if "tokens" not in inputs.values() or n_vocab is None or runtime.graph.find(LOGITS) < 0:
        return None
    batch, ctx = runtime.window
    if {"batch", "ctx"} <= runtime.sizes.keys():
        batch, ctx = 1, min(ctx, CHECKED_CTX)
        runtime = runtime.at(batch, ctx)
    ids = np.array([int(bits) % n_vocab for bits in philox(0, "merge").random_raw(batch * ctx)], np.int32)
    return np.asarray(runtime.forward(LOGITS, tokens=ids.reshape(batch, ctx))[0])
