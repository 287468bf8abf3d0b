"""How a run is asked to stop, in the middle of a step too: signals, noticed at once.

SIGINT (Ctrl-C), SIGTERM, SIGHUP (a terminal that closes) and SIGUSR1 (a scheduler's warning) ask for a checkpoint and
the end. A second SIGINT or SIGTERM ends the process at once, as if nobody listened. What the caller has the process
ignore, as nohup does, stays ignored. Used by the trainer.

Python runs handlers between its own instructions only, and a step is one long call of C. So the C handler wakes a
thread through a pipe (signal.set_wakeup_fd).
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from threading import Thread, current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any

URGENT = (signal.SIGINT, signal.SIGTERM)  # a second one does not wait
ASKING = (*URGENT, signal.SIGHUP, signal.SIGUSR1)


class StopRequest:
    """Listens to signals until it is left; a context manager. They are the main thread's: in others it hears none.

    acknowledge: called once, in another thread, at the first signal.
    """

    def __init__(self, acknowledge: Callable[[], None]) -> None:
        self.asked = False
        self._acknowledge = acknowledge
        self._before: dict[int, Any] = {}
        self._listens = current_thread() is main_thread()

    def __enter__(self) -> StopRequest:
        if not self._listens:
            return self
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._thread = Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in ASKING:
            if (handler := signal.getsignal(number)) is not signal.SIG_IGN:
                self._before[number] = handler
                signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True  # by the main thread: before its next step

    def _watch(self) -> None:
        noticed = urgent = False
        while byte := os.read(self._pipe[0], 1):
            number = byte[0]
            if number not in ASKING:
                continue
            if urgent and number in URGENT:
                _end(number)
            urgent = urgent or number in URGENT
            self.asked = True
            if not noticed:
                noticed = True
                self._acknowledge()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._listens:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._pipe[1])
        self._thread.join()
        os.close(self._pipe[0])


def _end(number: int) -> None:
    """End the process by a signal. Python sets handlers in the main thread only, which may be busy in C."""
    ctypes.CDLL(None).signal(number, 0)  # SIG_DFL
    os.kill(os.getpid(), number)
