"""A command on a terminal of its own, for tests of what it then shows and of what closing it does."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from types import TracebackType

COLUMNS = 80
START = """
import os, signal, sys
os.login_tty(int(sys.argv[1]))
if int(sys.argv[2]):
    signal.signal(int(sys.argv[2]), signal.SIG_IGN)
main = "from ggmlgraph.cli.main import main; main()"
os.execv(sys.executable, [sys.executable, "-P", "-c", main, *sys.argv[3:]])
"""


class Terminal:
    """`ggmlgraph` with these arguments; ignored: a signal that its caller has it ignore."""

    def __init__(self, arguments: list[str], ignored: int = 0, columns: int = COLUMNS, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, str(theirs), str(int(ignored)), *arguments],
            pass_fds=[theirs],
            env={**inherited, "TERM": "xterm", **environment},
        )
        os.close(theirs)

    def read(self) -> str:
        """Everything that is shown, up to the end of the command."""
        parts = []
        try:
            while part := os.read(self._ours, 1 << 16):
                parts.append(part)
        except OSError:  # how Linux says that nobody has the other side open
            pass
        return b"".join(parts).decode(errors="replace")

    def type(self, text: str) -> None:
        """Keys."""
        os.write(self._ours, text.encode())

    def close(self) -> None:
        """What a lost connection does."""
        if self._ours >= 0:
            os.close(self._ours)
        self._ours = -1

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
