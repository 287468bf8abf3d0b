"""What is said on a terminal, and text that a model writes, on its way to standard output. Used by the commands."""

from __future__ import annotations

import sys

import click

from ggmlgraph.errors import escaped

WHITE = "\n\t"  # control characters of a text that are shown as they are


def say(text: str, err: bool = False) -> None:
    """Lines about a file or a run. Names in them are other people's, so nothing in them steers a terminal."""
    click.echo(escaped(text, keep=WHITE), err=err)


def shown(text: str) -> str:
    """The text as it is for a file or pipe; for a terminal with its control characters escaped."""
    return escaped(text, keep=WHITE) if sys.stdout.isatty() else text
