"""A graph is written as one to be fine-tuned: with adapters, and with less that is trained.

Weights are streamed, so a base of any size takes little memory. What differs from the base, and the base's hash, is in
the metadata (`Finetuned`); `merging` finds the way back there. Used by `ggmlgraph finetune`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from ggmlgraph.core.importer import identify
from ggmlgraph.durable import replacing
from ggmlgraph.errors import UnsupportedError, UsageError
from ggmlgraph.execution import checkpoint
from ggmlgraph.execution.namedgraph import LOGITS
from ggmlgraph.finetuning import lora, targets
from ggmlgraph.finetuning.lora import LoRA
from ggmlgraph.graphfile import lowrank, metadata, reader, writer
from ggmlgraph.graphfile.lowrank import Weight
from ggmlgraph.graphfile.metadata import Finetuned, Metadata
from ggmlgraph.graphfile.records import Order, Record, digest, leaf
from ggmlgraph.graphfile.rewrite import move_flags
from ggmlgraph.interchange.formats import safetensors
from ggmlgraph.interchange.formats.stored import Stored
from ggmlgraph.table.dialect import V2
from ggmlgraph.training import rundir
from ggmlgraph.training.run import Run


@dataclass(frozen=True)
class Choice:
    """What is trained of a base. lora: adapters, or none. train: words of targets.py for parameters that are trained in
    full; without any, and without adapters, all are. last: only in so many of the last layers."""

    lora: LoRA | None = None
    train: tuple[str, ...] = ()
    last: int | None = None


@dataclass(frozen=True)
class Opened:
    """A graph with its weights: those of a run's checkpoint where there is one."""

    path: Path
    records: list[Record]
    text: bytes  # of the metadata leaf
    meta: Metadata
    places: dict[str, tuple[Path, int]]  # by name of a leaf: the file its values lie in, and where

    def stored(self, weight: Weight) -> Stored:
        """The values of a matrix."""
        return Stored(*self.places[weight.name], weight.dtype, weight.shape)

    def matrices(self) -> dict[str, Weight]:
        """The graph's matrices, see `lowrank.weights`."""
        return lowrank.weights(self.records)


def open_base(path: Path) -> Opened:
    """The graph of a file, a run directory (its latest whole checkpoint) or a checkpoint. Raises as `Run.open`."""
    run = Run.open(path)
    graph = reader.read(run.graph, identify(run.graph))
    run.check()
    records = move_flags(graph.records, V2)
    places = {r.name: (run.graph, at) for r, at in zip(graph.records, graph.offsets, strict=True) if at >= 0}
    if run.checkpoint:
        saved = safetensors.read(run.checkpoint / checkpoint.WEIGHTS)
        records = [replace(r, data=_streamed(saved[r.name])) if r.name in saved else r for r in records]
        places |= {name: (stored.path, stored.offset) for name, stored in saved.items()}
    found = next((r for r in records if r.name == metadata.LEAF_NAME), None)
    text = Metadata(model="").encode() if found is None else b"".join(map(bytes, found.data() if found.data else ()))
    if found is None:
        records.append(leaf(metadata.LEAF_NAME, text))
    text = text.rstrip(b"\0")
    beside = rundir.tokenizer_path(run.directory) if run.directory else None
    if beside and beside.exists() and not any(r.name == metadata.TOKENIZER_LEAF for r in records):
        records.append(leaf(metadata.TOKENIZER_LEAF, beside.read_bytes()))
    return Opened(path, records, text, metadata.decode(text), places)


def _streamed(stored: Stored) -> Callable[[], Any]:
    return lambda: (values.data.cast("B") for values in stored.chunks())


def write(base: Path, target: Path, choice: Choice, seed: int) -> Finetuned:
    """Write what is to be trained of `base` to `target`, at once or not at all; returns what its metadata say of it.

    Raises UsageError for words that mean nothing in the graph, UnsupportedError for a graph that has adapters already.
    """
    opened = open_base(base)
    if opened.meta.finetuned and opened.meta.finetuned.adapters:
        raise UnsupportedError(f"{base} has adapters already: `ggmlgraph merge` makes one graph of it first")
    weights = opened.matrices()
    asked = _limited(choice, weights)
    chosen = asked.chosen(weights, lowrank.head_of(opened.records, LOGITS)) if asked else {}
    is_trained = _trains(choice, [r.name for r in opened.records if r.is_param])
    frozen = [r.name for r in opened.records if r.is_param and not is_trained(r.name)]
    before = opened.meta.finetuned.frozen if opened.meta.finetuned else ()
    said = Finetuned(base=digest(opened.records), frozen=(*before, *frozen))
    if asked:
        said = msgspec.structs.replace(
            said, rank=asked.r, alpha=asked.alpha, rslora=asked.rslora, dropout=asked.dropout, initializer=asked.init,
            adapters=chosen,
        )  # fmt: skip
    made = lora.adapters(weights, chosen, asked, said.scale, seed) if asked else {}
    emit(target, *lowrank.insert(opened.records, made, is_trained, V2), opened, said)
    return said


def _limited(choice: Choice, weights: Iterable[str]) -> LoRA | None:
    """The adapters asked for, with the layers that `last` leaves."""
    if choice.lora is None or choice.last is None:
        return choice.lora
    if choice.lora.layers:
        raise UsageError("give either layers= or --last")
    return replace(choice.lora, layers=tuple(_last_layers(choice.last, weights)))


def _last_layers(n: int, names: Iterable[str]) -> range:
    n_layer = 1 + max((layer for name in names if (layer := targets.layer_of(name)) is not None), default=-1)
    if not 1 <= n <= n_layer:
        raise UsageError(f"--last {n}: the graph has {n_layer} layers")
    return range(n_layer - n, n_layer)


def _trains(choice: Choice, params: Sequence[str]) -> Callable[[str], bool]:
    """Whether a parameter of the base is trained in full."""
    for word in choice.train:
        if not any(targets.matches(name, word) for name in params):
            raise UsageError(f"--train: no float32 parameter is called {word!r}; there are {targets.listed(params)}")
    last = None if choice.last is None else _last_layers(choice.last, params)
    trained = {
        name for name in params
        if (any(targets.matches(name, word) for word in choice.train) if choice.train else choice.lora is None)
        and (last is None or targets.layer_of(name) in last)
    }  # fmt: skip
    if not trained and choice.lora is None:
        raise UsageError(f"nothing is left to train; float32 parameters are {targets.listed(params)}")
    return trained.__contains__


def emit(target: Path, placed: Order, new: dict[str, str], opened: Opened, said: Finetuned) -> None:
    """Write adapted records, with what their metadata then say."""
    meta = opened.meta
    rates = {name: said.dropout for name in new if lowrank.drops(name)} if said.dropout else {}
    fields: dict[str, Any] = {
        "finetuned": msgspec.to_builtins(said),
        "where": meta.where | {name: meta.where[of] for name, of in new.items() if of in meta.where},
        "dropout": meta.dropout | rates,
        "ranks": meta.ranks | {name: 2 for weight in said.adapters for name in lowrank.names(weight)},
    }
    write_records(target, placed, metadata.updated(opened.text, fields))


def write_records(target: Path, placed: Order, text: bytes) -> None:
    """A graph file of records, whose metadata leaf becomes `text`."""
    leafs = tuple(leaf(r.name, text) if r.name == metadata.LEAF_NAME else r for r in placed.leafs)
    placed = Order(leafs, placed.nodes)
    with replacing(target) as temporary, temporary.open("wb") as stream:
        writer.emit(stream, placed, V2, writer.work_nbytes(placed))
