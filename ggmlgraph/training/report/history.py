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
from ggmlgraph.training.metrics import LONGEST, StepMetrics

Column = NDArray[np.float64]
CURVES = ("loss", "val_loss", "val_accuracy", "lr", "grad_norm", "tokens_per_s")  # NaN where a step has none
AXES = ("step", "tokens", "elapsed_s")


@dataclass(frozen=True)
class History:
    """One number a step in each column; steps rise."""

    columns: dict[str, Column]

    def __len__(self) -> int:
        return len(self.columns["step"])


def read(path: Path) -> History:
    """The metrics of a run. A last line that is not whole yet is left out.

    Raises FormatError naming the line for anything else that is no line of a run's metrics.
    """
    columns = {name: array("d") for name in (*AXES, *CURVES)}
    last = 0
    for number, metrics in _lines(path):
        if metrics.step <= last:
            raise FormatError(f"{path}, line {number}: step {metrics.step} follows step {last}")
        last = metrics.step
        for name, column in columns.items():
            value = getattr(metrics, name)
            column.append(np.nan if value is None else value)
    return History({name: np.frombuffer(column, np.float64) for name, column in columns.items()})


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
