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

from ggmlgraph.errors import FormatError
from ggmlgraph.execution.namedgraph import LOGITS
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.finetuning import basis, factors
from ggmlgraph.finetuning.basis import Opened
from ggmlgraph.finetuning.factors import Factors
from ggmlgraph.graphfile import lowrank, metadata
from ggmlgraph.graphfile.lowrank import Weight
from ggmlgraph.philox import philox
from ggmlgraph.table.dialect import V2
from ggmlgraph.training.run import Run

CHECKED_CTX = 64  # tokens on which adapters and their merger are compared


def merge(path: Path, target: Path) -> Opened:
    """Write the graph of a run, checkpoint or file without its adapters, which its weights then have in them.

    Returns what was opened. Raises UsageError if there are none, FormatError for a weight that is no
    longer finite.
    """
    opened = basis.open_base(path)
    said, weights = factors.said_of(opened), opened.matrices()
    adapters = factors.adapters_of(opened)
    data = {name: _merged(opened, weights[name], own) for name, own in adapters.of.items()}
    placed = lowrank.remove(opened.records, said.adapters, data, (*said.frozen, *said.adapters), V2)
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


def _merged(opened: Opened, weight: Weight, own: Factors) -> Callable[[], Iterator[memoryview]]:
    def chunks() -> Iterator[memoryview]:
        at, columns = 0, weight.shape[1]
        for values in opened.stored(weight).chunks():
            first, last = at // columns, -(-(at + values.size) // columns)
            with np.errstate(over="ignore", invalid="ignore"):
                change = own.change(first, last).reshape(-1)[at - first * columns :][: values.size]
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
    if {"batch", "ctx"} <= runtime.sizes.keys():  # a run's may be others than its graph's
        batch, ctx = 1, min(runtime.metadata.limits.get("ctx", CHECKED_CTX), CHECKED_CTX)
        runtime = runtime.at(batch, ctx)
    ids = np.array([int(bits) % n_vocab for bits in philox(0, "merge").random_raw(batch * ctx)], np.int32)
    return np.asarray(runtime.forward(LOGITS, tokens=ids.reshape(batch, ctx))[0])
