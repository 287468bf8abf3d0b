"""Checkpoints written by a thread while training goes on, without a copy of what they hold.

The thread reads weights and optimiser's state where they lie, during the forward and backward pass of the next steps;
`Runtime.step` waits for it before it changes them. By then they are mostly written, to the system's cache of files;
what takes longer, the disk and the digests, no step waits for. Used by the training loop.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any

from ggmlgraph.errors import CheckpointError
from ggmlgraph.execution import checkpoint
from ggmlgraph.execution.checkpoint import NotFiniteError, Snapshot
from ggmlgraph.execution.runtime import Runtime


class Saver:
    """Writes one checkpoint at a time; a context manager, which waits for the last one."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._copied = Event()
        self._is_not_finite = False  # what was to be written; known before the runtime changes again

    def __enter__(self) -> Saver:
        self._runtime.before_update = self._copied.wait
        self._copied.set()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        self._runtime.before_update = None

    def start(
        self,
        directory: Path,
        state: dict[str, Any],
        before: Callable[[], object],
        after: Callable[[], object] | None,
    ) -> None:
        """Begin to write a checkpoint of the runtime as it is now; the one before must have been taken.

        before, after: called in the thread; what they raise is told as what the writing raises.
        """
        snapshot = checkpoint.snapshot(self._runtime, state)
        self._is_not_finite = False
        self._copied.clear()
        self._pending = self._pool.submit(self._write, snapshot, directory, before, after)

    def _write(
        self, snapshot: Snapshot, directory: Path, before: Callable[[], object], after: Callable[[], object] | None
    ) -> None:
        try:
            before()
            checkpoint.write(snapshot, directory, self._copied.set)
            if after:
                after()
        except NotFiniteError:
            self._is_not_finite = True
            raise
        finally:
            self._copied.set()

    def take(self, *, wait: bool) -> bool:
        """Whether a checkpoint has been written since the last call. wait: for the one that is being written.

        Raises CheckpointError if it could not be; NotFiniteError in the first call after the next step at the latest.
        """
        if self._pending is None or not (wait or self._is_not_finite or self._pending.done()):
            return False
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except OSError as error:
            raise CheckpointError(f"{error.filename}: {error.strerror}") from None
        return True
