"""Adapters from files are put beside a graph's weights: what `--adapter X[:SCALE]` says."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ggmlgraph.core.limits import DEFAULT, Limits
from ggmlgraph.errors import FormatError, UnsupportedError, UsageError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.finetuning import basis, factors, llamacpp, peft
from ggmlgraph.finetuning.basis import Opened
from ggmlgraph.finetuning.factors import Adapters
from ggmlgraph.generation.generate import open_model
from ggmlgraph.graphfile import lowrank
from ggmlgraph.graphfile.lowrank import LowRank
from ggmlgraph.graphfile.metadata import Finetuned
from ggmlgraph.graphfile.records import digest
from ggmlgraph.table.dialect import V2
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.training.run import Run


def read(path: Path, opened: Opened) -> Adapters:
    """The adapters at a path, of the graph that is opened: a PEFT folder, a GGUF file, a run or a graph of ours.

    Raises FormatError, UnsupportedError, UsageError for what is no adapter.
    """
    if path.is_dir() and (path / peft.CONFIG).exists():
        return peft.read(path, opened)
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) == b"GGUF":
                return llamacpp.read(path, opened)
    other = basis.open_base(path)
    found, weights = factors.adapters_of(other), opened.matrices()
    for name, own in found.of.items():
        if name not in weights or (own.a.shape, own.b.shape) != lowrank.shapes(weights[name], own.rank):
            raise FormatError(f"{path}: {opened.path} has no {name} that its adapter fits")
    if factors.said_of(other).base != digest(opened.records):
        raise FormatError(f"{path}: adapters of another base than {opened.path}: the same names, other values")
    return found


def parse(word: str) -> tuple[Path, float]:
    """ "X" or "X:SCALE". Raises UsageError."""
    path, colon, number = word.rpartition(":")
    if not colon or Path(word).exists():
        return Path(word), 1.0
    try:
        scale = float(number)
    except ValueError:
        return Path(word), 1.0
    if not math.isfinite(scale):
        raise UsageError(f"--adapter {word}: {number} is no scale")
    return Path(path), scale


def attach(base: Path, target: Path, words: Sequence[str]) -> Finetuned:
    """Write `base` with adapters, each X or X:SCALE, to `target`; what its metadata then say.

    Raises UnsupportedError if it has some already, and as `read`.
    """
    opened = basis.open_base(base)
    if opened.meta.finetuned and opened.meta.finetuned.adapters:
        raise UnsupportedError(f"{base} has adapters already: `ggmlgraph merge` makes one graph of it first")
    parts = [(read(path, opened), scale) for path, scale in map(parse, words)]
    adapters = factors.joined(parts)
    frozen = [record.name for record in opened.records if record.is_param]
    said = adapters.said(digest(opened.records), frozen)
    made = {
        name: LowRank(own.rank, own.scale, _stream(own.a), _stream(own.b), adapters.dropout)
        for name, own in adapters.of.items()
    }
    basis.emit(target, *lowrank.insert(opened.records, made, lambda _: False, V2), opened, said)
    return said


def _stream(values: NDArray[Any]) -> Callable[[], Iterator[memoryview]]:
    return lambda: iter([values.reshape(-1).data.cast("B")])


def open_with(
    path: Path, words: Sequence[str], *, threads: int | None = None, ctx: int | None = None, limits: Limits = DEFAULT
) -> tuple[Runtime, Tokenizer]:
    """As generate.open_model, of a model with adapters besides."""
    with attached(path, words) as graph:
        ctx = ctx or (Run.open(path).ctx if words else None)
        return open_model(graph, threads=threads, ctx=ctx, limits=limits)


@contextmanager
def attached(path: Path, words: Sequence[str]) -> Iterator[Path]:
    """The path itself, or a graph with these adapters, which goes again."""
    if not words:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "adapted.bin"
        attach(path, made, words)
        yield made
