"""`run/metrics.jsonl`: one JSON object per optimiser step, in order, without gaps after a resume.

Written by the trainer. A resumed run first cuts off the lines after its checkpoint, so that the file ends up as an
uninterrupted run would have left it, timings aside. A file of that name that no run wrote is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from ggmlgraph.errors import CheckpointError, FormatError, UsageError
from ggmlgraph.files.regular import open_regular

Sizes = tuple[
    float | None, float | None, float | None
]  # of weights, of gradients, of updates by weights; None: unknown


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
    val_bits_per_byte: float | None = None  # the same, whatever the tokenizer; absent where the data are no text
    val_accuracy: float | None = None  # share of answers that are right, where the data are samples with targets
    memory: int | None = None  # bytes that the process holds, every --layers-every steps
    layers: dict[str, Sizes] | None = None  # and sizes of weights, gradients and updates by layer (layers.py)


def numbers(metrics: StepMetrics) -> Iterator[tuple[str, float]]:
    """What a line says of its step, by names as in other programs: those of layers are "weights/blk.0" and the like."""
    for name in SCALARS:
        if (value := getattr(metrics, name)) is not None:
            yield name, value
    for layer, sizes in (metrics.layers or {}).items():
        yield from ((f"{kind}/{layer}", size) for kind, size in zip(LAYERED, sizes, strict=True) if size is not None)


SCALARS = tuple(name for name in StepMetrics.__struct_fields__ if name not in ("step", "layers"))
LAYERED = ("weights", "gradients", "updates")
START = b'{"step":'  # of every line
LONGEST = 1 << 16  # bytes of a line


class MetricsFile:
    """Appends lines; a context manager. What cannot be written (disk full) is tried again with the next line."""

    def __init__(self, path: Path, last_step: int) -> None:
        """Open for appending after dropping every line beyond `last_step`.

        Raises OSError, UsageError for a file of another program.
        """
        check_ours(path)
        self._file = path.open("a+b", buffering=0)
        self._end = _end_of(path, last_step)
        self._file.truncate(self._end)
        self._pending = b""

    def write(self, metrics: StepMetrics) -> str | None:
        """Append a line; why it could not be written, or None."""
        self._pending += msgspec.json.encode(metrics) + b"\n"
        return self.flush()

    def cut(self, last_step: int) -> None:
        """Drop every line beyond `last_step`."""
        lines = self._pending.splitlines(keepends=True)
        self._pending = b"".join(line for line in lines if (_step_of(line) or 0) <= last_step)
        self._file.truncate(_end_of(Path(self._file.name), last_step))

    def flush(self) -> str | None:
        """Write what could not be written before; why it still cannot, or None."""
        try:
            while self._pending:
                written = self._file.write(self._pending)
                self._end += written
                self._pending = self._pending[written:]
        except OSError as error:
            return error.strerror or str(error)
        return None

    def sync(self) -> None:
        """Wait until the disk has every line that was written. Raises CheckpointError."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise CheckpointError(f"{self._file.name}: cannot be written: {error.strerror}") from None

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read(path: Path) -> Iterator[tuple[int, StepMetrics]]:
    """The lines of a file that may be cut, huge, or still being written, with their numbers. A last line that is not
    whole yet is left out. Raises FormatError naming the line for anything else that is no line of a run's metrics."""
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


def check_ours(path: Path) -> None:
    """Raise UsageError for a file that does not begin as this module writes it, if only with a part of a line."""
    if not path.exists():
        return
    with open_regular(path)[0] as file:
        line = file.readline(LONGEST)
    if line.endswith(b"\n"):
        ours = _step_of(line) is not None
    else:
        torn = line.rstrip(b"\0")  # which a loss of power leaves where data were to come
        ours = torn.startswith(START) or START.startswith(torn)
    if not ours:
        raise UsageError(f"{path} is not of a training run: choose another -o, or move it away")


def _step_of(line: bytes) -> int | None:
    """The step of a line; None for one that is torn, or of another program."""
    try:
        return msgspec.json.decode(line, type=StepMetrics).step if line.endswith(b"\n") else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _end_of(path: Path, last_step: int) -> int:
    """Bytes up to and including the line of `last_step`; a torn or foreign line ends the file."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            step = _step_of(line)
            if step is None or step > last_step:
                break
            end += len(line)
    return end
