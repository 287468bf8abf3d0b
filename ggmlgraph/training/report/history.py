"""The metrics of a run as columns, out of a file that may be cut, huge, or still being written.

Used by `page`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ggmlgraph.errors import FormatError
from ggmlgraph.files.regular import open_regular
from ggmlgraph.training.metrics import LONGEST, Sizes, StepMetrics

Column = NDArray[np.float64]
CURVES = (  # NaN where a step has none
    "loss", "val_loss", "val_bits_per_byte", "val_accuracy", "lr", "grad_norm", "tokens_per_s", "memory",
)  # fmt: skip
MOST_LAYERS = 256  # that are shown
AXES = ("step", "tokens", "elapsed_s")


@dataclass(frozen=True)
class Layers:
    """Sizes of each layer's weights, gradients and updates at the steps that have them."""

    names: tuple[str, ...]
    steps: Column
    values: NDArray[np.float64]  # (3, n_layers, n_steps); NaN where unknown


@dataclass(frozen=True)
class History:
    """One number a step in each column; steps rise."""

    columns: dict[str, Column]
    layers: Layers | None = None

    def __len__(self) -> int:
        return len(self.columns["step"])


def read(path: Path) -> History:
    """The metrics of a run. A last line that is not whole yet is left out.

    Raises FormatError naming the line for anything else that is no line of a run's metrics.
    """
    columns = {name: array("d") for name in (*AXES, *CURVES)}
    layers: list[tuple[int, dict[str, Sizes]]] = []
    last = 0
    for number, metrics in _lines(path):
        if metrics.step <= last:
            raise FormatError(f"{path}, line {number}: step {metrics.step} follows step {last}")
        last = metrics.step
        for name, column in columns.items():
            value = getattr(metrics, name)
            column.append(np.nan if value is None else value)
        if metrics.layers:
            layers.append((metrics.step, metrics.layers))
    return History({name: np.frombuffer(column, np.float64) for name, column in columns.items()}, _layers(layers))


def _layers(found: list[tuple[int, dict[str, Sizes]]]) -> Layers | None:
    names = tuple(dict.fromkeys(name for _, sizes in found for name in sizes))[:MOST_LAYERS]
    unknown = (None, None, None)
    values = np.array([[sizes.get(name, unknown) for name in names] for _, sizes in found], np.float64)
    steps = np.array([step for step, _ in found], np.float64)
    return Layers(names, steps, values.transpose(2, 1, 0)) if names else None


def _lines(path: Path) -> Iterator[tuple[int, StepMetrics]]:
    decoder = msgspec.json.Decoder(StepMetrics)
    with open_regular(path)[0] as file:
        number = 0
        while line := file.readline(LONGEST):
            number += 1
            try:
                metrics = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                if not line.endswith(b"\n") and len(line) < LONGEST:
                    return
                raise FormatError(f"{path}, line {number}: no line of a run's metrics: {error}") from None
            yield number, metrics
