"""The errors a person sees: one line each, with the exit status the command line ends with.

    GGError                 exit status 1
    ├── UsageError          exit status 2: the command or call asks for something that makes no sense
    ├── ShapeError          operands whose shapes do not fit an op
    ├── FormatError         a malformed file; `offset` is the byte where it is wrong
    ├── LimitError          a file with a larger graph than the caller allows (limits.py)
    ├── MemoryLimitError    the work does not fit the memory it was given
    ├── UnsupportedError    a well-formed input that needs something we do not have
    ├── DataError           text or tokens that cannot be used
    └── CheckpointError     a checkpoint that is incomplete, damaged or of another run

Raised everywhere in the package; caught once, by the command line, which prints the message without a traceback. What
would steer a terminal or change how a line is read is escaped, in them and in what else commands show of a file.
"""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import FrameType
from typing import ClassVar

PACKAGE = Path(__file__).resolve().parent
MAX_NCHARS = 4000  # of a message: names that it quotes come from files
# C0 and C1 controls, line and paragraph separators, what changes the direction of writing, halves of characters.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BEYOND_NAMES = re.compile(UNPRINTABLE.pattern[:-1] + "\u061c\ufeff]")  # harmless in a name, yet not seen


class GGError(Exception):
    """Base of every error meant for a person; `str(error)` is one line, and nothing in it steers a terminal.

    code: name of the rule that was broken, which does not change between versions (docs/cgraph.md lists those of graph
        files); None where there is none.
    offset: byte position in the offending file, None when there is none.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, code: str | None = None, offset: int | None = None) -> None:
        text = escaped(" ".join(message.split("\n")))
        super().__init__(text if len(text) <= MAX_NCHARS else f"{text[:MAX_NCHARS]}...")
        self.code = code
        self.offset = offset


class UsageError(GGError):
    """The command or call asks for something that makes no sense."""

    exit_status = 2


class ShapeError(GGError):
    """Operands whose shapes do not fit an op."""


class FormatError(GGError):
    """A malformed file."""


class LimitError(GGError):
    """A file with a larger graph than the caller allows."""


class MemoryLimitError(GGError):
    """The work does not fit the memory it was given."""


class UnsupportedError(GGError):
    """A well-formed input that needs something we do not have."""


class DataError(GGError):
    """Text or tokens that cannot be used."""


class CheckpointError(GGError):
    """A checkpoint that is incomplete, damaged or of another run."""


# ---------------------------------------------------------------- where it went wrong


def here() -> str:
    """ "file.py:41": where the user's own code is being executed, a model's of ours too."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (is_ours(frame.f_code.co_filename) or _is_numpys(frame)):
        frame = frame.f_back
    return "?" if frame is None else f"{short(frame.f_code.co_filename)}:{frame.f_lineno}"


def _is_numpys(frame: FrameType) -> bool:
    """Whether numpy's own code is being executed, which asks a tensor about itself."""
    return str(frame.f_globals.get("__name__", "")).startswith("numpy.")


@cache
def is_ours(filename: str) -> bool:
    """Whether a file is the package's, and no model of it."""
    path = Path(filename)
    return PACKAGE in path.parents and PACKAGE / "models" not in path.parents


def short(filename: str) -> str:
    """A file's name as people know it."""
    path = Path(filename)
    for base in (PACKAGE, Path.cwd(), PACKAGE.parent):
        with suppress(ValueError):
            return str(path.relative_to(base))
    return str(path)


# ---------------------------------------------------------------- text of others where people read it


def escaped(text: str, keep: str = "") -> str:
    r"""The text with each such character as Python writes it, "\x1b"; a byte of a name that is not UTF-8 as "\xff".

    keep: characters that stay, such as "\n\t" of a text.
    """
    return _BEYOND_NAMES.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode's, for the byte code - 0xDC00
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
