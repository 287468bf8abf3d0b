"""The options of the commands that draw tokens: `--temperature`, `--top-k` and so on."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from ggmlgraph.sampling import PENALISED, Sampling

DEFAULT = Sampling()


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options; it gets them as `how`, a `Sampling`."""

    @click.option("--temperature", type=float, default=DEFAULT.temperature, show_default=True,
                  help="0: always the likeliest token.")  # fmt: skip
    @click.option("--top-k", type=int, default=DEFAULT.top_k, show_default=True,
                  help="Draw among the K likeliest tokens; 0: all.")  # fmt: skip
    @click.option("--top-p", type=float, default=DEFAULT.top_p, show_default=True,
                  help="Draw among the likeliest tokens of this total probability.")  # fmt: skip
    @click.option("--min-p", type=float, default=DEFAULT.min_p, show_default=True,
                  help="Draw among tokens at least this likely, measured by the likeliest.")  # fmt: skip
    @click.option("--repeat-penalty", type=float, default=DEFAULT.repeat_penalty, show_default=True,
                  help=f"Divide the logits of the last {PENALISED} tokens by this; 1: do not.")  # fmt: skip
    @click.option("--seed", type=click.IntRange(0, (1 << 64) - 1), default=DEFAULT.seed, show_default=True)
    @wraps(command)
    def drawing(
        *arguments: Any,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repeat_penalty: float,
        seed: int,
        **options: Any,
    ) -> Any:
        how = Sampling(temperature, top_k, top_p, seed, min_p, repeat_penalty)
        return command(*arguments, how=how, **options)

    return drawing
