"""`run/events.jsonl`: what happened to a run, in the order in which it happened: begun, resumed, saved, skipped, ended.

Lines are only ever appended, by the trainer, so the file tells of all sittings of a run, those of steps that were done
again after a resume too. It is told by the report (report/page.py); training itself never reads it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from ggmlgraph.files.regular import open_regular

Kind = Literal["start", "resume", "checkpoint", "skip", "spike", "rollback", "phase", "sample", "stop", "end"]
MOST_NBYTES = 64 << 20  # of a file that is read


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the file."""

    kind: Kind
    step: int  # after which it happened
    time: float  # seconds since 1970
    text: str = ""  # what people read
    facts: dict[str, Any] = {}  # of a start or resume: what the run is, and where it runs; of a sample: its tokens


class EventsFile:
    """Appends events. What cannot be written, as on a full disk, is left out: metrics and weights matter more."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, kind: Kind, step: int, text: str = "", **facts: Any) -> None:
        said = {name: encodable(value) if isinstance(value, str) else value for name, value in facts.items()}
        event = Event(kind=kind, step=step, time=round(time.time(), 3), text=encodable(text), facts=said)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC  # should it be a pipe: no waiting
        with suppress(OSError), os.fdopen(os.open(self._path, flags, 0o666), "ab") as file:
            file.write(msgspec.json.encode(event) + b"\n")


def encodable(text: str) -> str:
    """Names of files need not be UTF-8: what is not is escaped."""
    return text.encode(errors="backslashreplace").decode()


def read(path: Path) -> Iterator[Event]:
    """The events of a file, if there is one; a line that is torn, or of a later version, is passed over."""
    if not path.exists():
        return
    with open_regular(path)[0] as file:
        lines = file.read(MOST_NBYTES).splitlines()
    for line in lines:
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            yield msgspec.json.decode(line, type=Event)
