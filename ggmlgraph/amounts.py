"""Amounts as people read them. Used by what training tells, and by the commands."""

from __future__ import annotations


def nbytes(n: float) -> str:
    """ "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} {unit}"
        n /= 1024
    return f"{n:.2f} GiB"
