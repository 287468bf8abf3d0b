"""What a command tells beside its result. Used by the commands."""

from __future__ import annotations

import click


def told(line: str) -> None:
    """A line on standard error."""
    click.echo(line, err=True)
