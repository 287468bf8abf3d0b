"""`run/metrics.jsonl`: one JSON object per optimiser step, in order, without gaps after a resume.

Written by the trainer. A resumed run first cuts off the lines after its checkpoint, so that the file ends up as an
uninterrupted run would have left it, timings aside.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import msgspec


class StepMetrics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the file. loss and grad_norm are null where they were not finite and the update was skipped."""

    step: int  # from 1
    tokens: int  # seen so far; samples, if the data are samples
    loss: float | None  # before the update, nats per token
    lr: float
    grad_norm: float | None  # global L2 norm before clipping
    tokens_per_s: float
    elapsed_s: float  # of training, over all resumes
    val_loss: float | None = None  # after the update; absent where not evaluated
    val_accuracy: float | None = None  # share of answers that are right, where the data are samples with targets


class MetricsFile:
    """Appends lines; a context manager. What cannot be written (disk full) is tried again with the next line."""

    def __init__(self, path: Path, last_step: int) -> None:
        """Open for appending after dropping every line beyond `last_step`. Raises OSError."""
        self._file = path.open("a+b", buffering=0)
        self._end = _end_of(path, last_step)
        self._file.truncate(self._end)
        self._pending = b""

    def write(self, metrics: StepMetrics) -> str | None:
        """Append a line; why it could not be written, or None."""
        self._pending += msgspec.json.encode(metrics) + b"\n"
        return self._flush()

    def _flush(self) -> str | None:
        try:
            while self._pending:
                written = self._file.write(self._pending)
                self._end += written
                self._pending = self._pending[written:]
        except OSError as error:
            return error.strerror or str(error)
        return None

    def sync(self) -> None:
        """Wait until the disk has every line. Raises OSError."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _end_of(path: Path, last_step: int) -> int:
    """Bytes up to and including the line of `last_step`; a torn or foreign line ends the file."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            try:
                if not line.endswith(b"\n") or msgspec.json.decode(line, type=StepMetrics).step > last_step:
                    break
            except (msgspec.DecodeError, UnicodeDecodeError):
                break
            end += len(line)
    return end
