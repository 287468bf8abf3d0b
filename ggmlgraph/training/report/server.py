"""The page of a run that is still being trained, over HTTP on this machine alone: `ggmlgraph dash`.

`/` is the page as it is now, `/news` tells a browser by server-sent events that there is something new. Only files are
read, so the training run never notices who watches it. What asks for another host than this one, as a page of somebody
else's would whose name leads here, gets nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ggmlgraph.errors import GGError, UsageError
from ggmlgraph.training.report.page import page
from ggmlgraph.training.report.told import told

HOST = "127.0.0.1"
LOOK_EVERY = 1.0  # seconds between looks at the files
REST = 200.0  # times as long as a page took to make, until the next is made: half a percent of one processor
BEAT = 15.0  # seconds after which a browser is written to though there is nothing new: to notice that it has left
FILES = ("metrics.jsonl", "events.jsonl", "config.json")

State = tuple[tuple[int, int] | None, ...]


class Server(ThreadingHTTPServer):
    """Serves the page of `runs` until it is shut down."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, runs: list[Path], port: int) -> None:
        """port 0: any that is free. Raises UsageError if the port is in use."""
        self.runs = runs
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._state: State | None = None  # of the files that the page is of
        self._text = ""
        self._rested = 0.0  # when the next may be made
        self.page()
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise UsageError(f"--port {port}: {error.strerror}; another --port, or 0 for any that is free") from None

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    @property
    def made(self) -> State | None:
        """The state of the files that the last page is of."""
        return self._state

    def state(self) -> State:
        """What changes when a run goes on."""
        return tuple(_stat(run / name) for run in self.runs for name in FILES)

    def page(self) -> tuple[State | None, str]:
        """The page, and the files' state that it is of: that of now, unless the last page was made only just before.

        However many ask for it, it is made once, and what that costs is bounded.
        """
        with self._lock:
            state, before = self.state(), time.thread_time()
            if state != self._state and time.monotonic() >= self._rested:
                self._text = page([told(run) for run in self.runs], live=True)
                self._state = state
                self._rested = time.monotonic() + REST * (time.thread_time() - before)
            return self._state, self._text

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves is no error."""

    def shutdown(self) -> None:
        self.closing.set()
        super().shutdown()


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = 60
    server_version, sys_version = "ggmlgraph", ""

    def do_GET(self) -> None:
        if self.headers.get("Host", "").partition(":")[0] not in (HOST, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path == "/":
            self._page()
        elif self.path == "/news":
            self._news()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _page(self) -> None:
        try:
            _, text = self.server.page()
        except GGError as error:
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, explain=str(error))
            return
        self._head("text/html; charset=utf-8", len(text.encode()))
        self.wfile.write(text.encode())

    def _news(self) -> None:
        known, beat = None, time.monotonic()  # the browser's own page may be older than the last one that was made
        self._head("text/event-stream", None)
        while not self.server.closing.wait(LOOK_EVERY):
            with suppress(GGError):  # as of a file that is half written: told with the next one that is whole
                self.server.page()
            if self.server.made != known:
                known = self.server.made
                self._tell(b"data: new\n\n")
                beat = time.monotonic()
            elif time.monotonic() - beat > BEAT:
                self._tell(b": still here\n\n")
                beat = time.monotonic()

    def _tell(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def _head(self, kind: str, nbytes: int | None) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if nbytes is not None:
            self.send_header("Content-Length", str(nbytes))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is told of requests."""


def serve(runs: list[Path], port: int, tell: Callable[[str], None]) -> None:
    """Serve until Ctrl-C. Its work stands back behind that of a training run."""
    os.nice(10)
    with Server(runs, port) as server:
        tell(server.address)
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.2), daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(1.0)
        except KeyboardInterrupt:
            server.shutdown()
