"""How parameters are updated, as options' values: an optimiser, factors by pattern of names. Used by commands.py."""

from __future__ import annotations

import click

from ggmlgraph.errors import UsageError
from ggmlgraph.execution import optimizers
from ggmlgraph.execution.optimizers import AnyOptimizer


class OptimizerType(click.ParamType[AnyOptimizer]):
    """ "lion:beta2=0.95" -> Lion(beta2=0.95)."""

    name = "NAME[:KEY=VALUE,...]"

    def convert(
        self, value: str | AnyOptimizer, param: click.Parameter | None, ctx: click.Context | None
    ) -> AnyOptimizer:
        if not isinstance(value, str):
            return value
        try:
            return optimizers.parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class FactorType(click.ParamType[tuple[str, float]]):
    """ "blk.*=0.5" -> ("blk.*", 0.5)."""

    name = "PATTERN=FACTOR"

    def convert(
        self, value: str | tuple[str, float], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        if not isinstance(value, str):
            return value
        pattern, _, factor = value.rpartition("=")
        try:
            return pattern, float(factor)
        except ValueError:
            self.fail(f"{value!r} is no PATTERN=FACTOR", param, ctx)


def by_pattern(ctx: click.Context, param: click.Parameter, value: tuple[tuple[str, float], ...]) -> dict[str, float]:
    """The factors of a repeated option, in the order given."""
    factors = dict(value)
    if len(factors) < len(value):
        raise click.BadParameter("a pattern is given twice", ctx, param)
    return factors
