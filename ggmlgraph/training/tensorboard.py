"""A run's metrics as TensorBoard reads them, beside metrics.jsonl, which stays the truth.

Used by `ggmlgraph train --tensorboard` while a run goes on, and by `ggmlgraph metrics --tensorboard` afterwards.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ggmlgraph.errors import UsageError
from ggmlgraph.training.metrics import StepMetrics, numbers

FLUSH_EVERY = 10.0  # seconds


class TensorBoard:
    """Appends to a folder of event files; a context manager. What cannot be written, as on a full disk, is left out."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        """step: the last one that counts of what earlier files of the folder have. Raises UsageError, OSError."""
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2, summary_pb2
        except ImportError:
            raise UsageError("--tensorboard needs tensorboardX: pip install 'ggmlgraph[tensorboard]'") from None
        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._summary = event_pb2, summary_pb2
        self._file = EventsWriter(str(folder / "events"), f".{step:09d}")  # the name has seconds, which two may share
        self._flushed = time.monotonic()
        if step:
            self.go_on_from(step)

    def go_on_from(self, step: int) -> None:
        """What was written of later steps counts no more."""
        began = self._event.SessionLog(status=self._event.SessionLog.START)
        self._put(self._event.Event(step=step + 1, session_log=began))

    def write(self, metrics: StepMetrics) -> None:
        """A step."""
        values = [self._summary.Summary.Value(tag=name, simple_value=value) for name, value in numbers(metrics)]
        self._put(self._event.Event(step=metrics.step, summary=self._summary.Summary(value=values)))

    def _put(self, event: object) -> None:
        event.wall_time = time.time()  # type: ignore[attr-defined]
        with suppress(OSError):
            self._file.write_event(event)
            if time.monotonic() - self._flushed >= FLUSH_EVERY:
                self._flushed = time.monotonic()
                self._file.flush()

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._file.close()
