"""Graphs with adapters whose factors are random, B too, and bases of other element types. Used by these tests."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.core import encoding
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.finetuning import basis
from ggmlgraph.finetuning.basis import Choice
from ggmlgraph.finetuning.lora import LoRA
from ggmlgraph.graphfile import lowrank, reader, writer
from ggmlgraph.graphfile.records import Record, dense_strides
from ggmlgraph.table.dialect import PARAM, TYPES, V2


def adapt(base: Path, target: Path, lora: LoRA | None = None, *, seed: int = 0, **choice: Any) -> Path:
    """The base with adapters, of which both factors are random."""
    said = basis.write(base, target, Choice(lora or LoRA(r=4, alpha=8.0), **choice), seed)
    randomise(target, said.adapters)
    return target


def randomise(graph: Path, weights: Any) -> None:
    """Write random values into the factors of a file's adapters."""
    file = reader.read(graph)
    content = bytearray(graph.read_bytes())
    rng = np.random.default_rng(1)
    for weight in weights:
        for name in lowrank.names(weight):
            at = file.find(name)
            assert at is not None
            values = rng.standard_normal(file.records[at].n_elements).astype("<f4") * np.float32(0.1)
            content[file.offsets[at] : file.offsets[at] + values.nbytes] = values.tobytes()
    graph.write_bytes(content)


def logits(path: Path, ids: NDArray[np.int32], **settings: Any) -> NDArray[np.float32]:
    """What a graph makes of tokens (batch, ctx)."""
    with Runtime(path, batch=len(ids), ctx=ids.shape[1], threads=1, **settings) as runtime:
        return np.asarray(runtime.forward("logits", tokens=ids)[0])


def tokens(n_vocab: int = 256, batch: int = 1, ctx: int = 16) -> NDArray[np.int32]:
    return np.random.default_rng(7).integers(0, n_vocab, (batch, ctx)).astype(np.int32)


def retyped(source: Path, target: Path, dtype: str) -> Path:
    """A graph whose matrices are stored in another type, to which they are rounded, and not trained."""
    file = reader.read(source)
    matrices = lowrank.weights(file.records)

    def stored(record: Record) -> Record:
        if record.name not in matrices:
            return record
        element = TYPES[dtype.upper()]
        data = random_blocks(dtype, record.n_elements)
        strides = dense_strides(element, record.ne)
        return replace(record, type=element.name, nb=strides, flags=record.flags & ~PARAM, data=partial(iter, [data]))

    placed = lowrank.as_listed([stored(record) for record in file.records], V2)
    with target.open("wb") as stream:
        writer.emit(stream, placed, V2, writer.work_nbytes(placed))
    return target


def random_blocks(dtype: str, n: int) -> bytes:
    """Values of moderate size as a type stores them."""
    rng, element = np.random.default_rng(3), encoding.element(dtype)
    if element.encodes:
        return encoding.encode(dtype, rng.standard_normal(n).astype(np.float32) * np.float32(0.05)).tobytes()
    blocks = rng.integers(0, 256, (n // element.block, element.nbytes), np.uint8)
    scales = rng.uniform(0.0005, 0.002, (len(blocks), 2)).astype(np.float16)
    blocks[:, :4] = scales.view(np.uint8)  # of Q4_K: d and dmin
    return blocks.tobytes()
