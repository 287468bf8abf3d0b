"""`ggmlgraph metrics run/ --csv FILE | --tensorboard DIR | --trackio PROJECT`: a run's numbers for other programs."""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ggmlgraph.cli.told import told
from ggmlgraph.durable import replacing
from ggmlgraph.errors import UsageError
from ggmlgraph.training.metrics import SCALARS, StepMetrics, numbers, read
from ggmlgraph.training.tensorboard import TensorBoard

STDOUT = Path("-")


def command(run: Path, output: Path | None, tensorboard: Path | None, trackio: str | None) -> None:
    """Write the metrics of a run in other formats."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UsageError(f"{run} has no metrics.jsonl: nothing has been trained there")
    if output is None and tensorboard is None and trackio is None:
        raise UsageError("say what to write: --csv FILE, --tensorboard DIR or --trackio PROJECT")
    if output == STDOUT:
        _csv(path, sys.stdout)
    elif output is not None:
        with replacing(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            told(f"{output}: {_csv(path, file):,} steps")
    if tensorboard is not None:
        _tensorboard(path, tensorboard)
    if trackio is not None:
        _trackio(path, trackio, run.absolute().name)


def _csv(path: Path, file: TextIO) -> int:
    """A line a step; how many. Columns that no step has are left out."""
    seen = dict.fromkeys(name for metrics in _steps(path) for name, _ in numbers(metrics))
    names = [*(name for name in SCALARS if name in seen), *(name for name in seen if name not in SCALARS)]
    writer, n = csv.writer(file, lineterminator="\n"), 0
    writer.writerow(["step", *names])
    for metrics in _steps(path):
        values = dict(numbers(metrics))
        writer.writerow([metrics.step, *(values.get(name, "") for name in names)])
        n += 1
    return n


def _steps(path: Path) -> Iterator[StepMetrics]:
    return (metrics for _, metrics in read(path))


def _tensorboard(path: Path, folder: Path) -> None:
    with TensorBoard(folder) as board:
        for metrics in _steps(path):
            board.write(metrics)
    told(f"{folder}: tensorboard --logdir {folder}")


def _trackio(path: Path, project: str, name: str) -> None:
    try:
        import trackio
    except ImportError:
        raise UsageError("--trackio needs trackio: pip install trackio") from None
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "metrics.csv"
        with table.open("w", encoding="utf-8", newline="") as file:
            _csv(path, file)
        try:
            trackio.import_csv(table, project=project, name=name)
        except ValueError as error:
            raise UsageError(f"--trackio {project}: {error}") from None
