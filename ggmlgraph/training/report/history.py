"""The metrics of a run as columns, out of a file that may be cut, huge, or still being written.

Used by `page`.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.errors import FormatError
from ggmlgraph.training.metrics import Sizes
from ggmlgraph.training.metrics import read as metrics_of

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
    """The metrics of a run. Raises FormatError as `metrics.read` does, and for steps that do not rise."""
    columns = {name: array("d") for name in (*AXES, *CURVES)}
    layers: list[tuple[int, dict[str, Sizes]]] = []
    last = 0
    for number, metrics in metrics_of(path):
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
