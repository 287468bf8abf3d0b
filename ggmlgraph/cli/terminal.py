"""Text that a model writes, on its way to standard output. Used by `generate` and `chat`."""

from __future__ import annotations

import sys

from ggmlgraph.printable import escaped

WHITE = "\n\t"  # control characters of a text that are shown as they are


def shown(text: str) -> str:
    """The text as it is for a file or pipe; for a terminal with its control characters escaped."""
    return escaped(text, keep=WHITE) if sys.stdout.isatty() else text
