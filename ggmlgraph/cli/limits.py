"""The options `--max-tensors`, `--max-nbytes` and `--max-flops` of the commands that open graph files."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from ggmlgraph.cli.memory import Memory
from ggmlgraph.limits import DEFAULT, Limits


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options; it gets them as `limits`, a `Limits`."""

    @click.option("--max-tensors", type=click.IntRange(1, 1 << 20), default=DEFAULT.tensors, show_default=True,
                  help="The most tensors to take from a file.")  # fmt: skip
    @click.option("--max-nbytes", type=Memory(), default=DEFAULT.nbytes, show_default=True,
                  help="The most bytes that all its tensors together may have.")  # fmt: skip
    @click.option("--max-flops", type=click.FloatRange(1), default=DEFAULT.flops, show_default=True,
                  help="The most operations that computing it once may take.")  # fmt: skip
    @wraps(command)
    def limited(*arguments: Any, max_tensors: int, max_nbytes: int, max_flops: float, **options: Any) -> Any:
        return command(*arguments, limits=Limits(max_tensors, max_nbytes, max_flops), **options)

    return limited
