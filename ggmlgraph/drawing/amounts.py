"""Amounts in a box as people read them. Used by `layout` and the writers of pictures."""

from __future__ import annotations

from ggmlgraph.drawing.diagram import Amounts


def told(amounts: Amounts) -> str:
    """ "12.6 M parameters, 3.4 GFLOP, 1.2 GiB of results"; what there is none of is left out."""
    parts = (
        f"{amounts.n_params:,} parameters",
        f"{_decimal(amounts.flops)}FLOP",
        f"{binary(amounts.nbytes)} of results",
    )
    return ", ".join(part for part, amount in zip(parts, _of(amounts), strict=True) if amount)


def brief(amounts: Amounts) -> str:
    """The same in the room of a box: "12.6 M params · 3.4 GFLOP · 1.2 GiB"."""
    parts = (f"{_decimal(amounts.n_params)} params", f"{_decimal(amounts.flops)}FLOP", binary(amounts.nbytes))
    return " · ".join(part.replace("  ", " ") for part, amount in zip(parts, _of(amounts), strict=True) if amount)


def _of(amounts: Amounts) -> tuple[float, ...]:
    return amounts.n_params, amounts.flops, amounts.nbytes


def _decimal(value: float) -> str:
    """ "12.6 M"."""
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} "


def binary(nbytes: float) -> str:
    """ "1.2 GiB"."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}"
    return f"{nbytes:.0f} B"
