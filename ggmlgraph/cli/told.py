"""What a command tells beside its result. Used by the commands."""

from __future__ import annotations

from ggmlgraph.cli.terminal import say


def told(line: str) -> None:
    """A line on standard error."""
    say(line, err=True)
