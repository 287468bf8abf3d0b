"""One call at a time, whichever thread it comes from. Used by `Runtime`."""

from __future__ import annotations

import os
import threading
from types import TracebackType


class Turns:
    """A lock that a thread may take again, and that a forked process begins with anew: its holder stayed behind."""

    def __init__(self) -> None:
        self._process, self._lock = os.getpid(), threading.RLock()

    def __enter__(self) -> None:
        if self._process != os.getpid():
            self._process, self._lock = os.getpid(), threading.RLock()
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
