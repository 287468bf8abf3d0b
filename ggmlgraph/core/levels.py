"""ISA levels of this build and the precisions of matrix products, by name, and how fast they could be at most.

Used by programs, by `doctor` and by benchmarks.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ggmlgraph.core.boundary import ffi, lib
from ggmlgraph.errors import UsageError

MATMUL_PRECISIONS = {"float32": lib.GG_MATMUL_FLOAT32, "bf16": lib.GG_MATMUL_BF16}


def matmul_precision_number(name: str) -> int:
    """GG_MATMUL_* of a name in MATMUL_PRECISIONS. Raises UsageError for any other."""
    if name not in MATMUL_PRECISIONS:
        raise UsageError(f"matmul precision {name!r} is not one of {', '.join(MATMUL_PRECISIONS)}")
    return int(MATMUL_PRECISIONS[name])


def level_argument(isa: str | None) -> Any:
    """A level as the C library takes it."""
    return ffi.NULL if isa is None else isa.encode()


def peak_flops(isa: str | None, threads: int, matmul_precision: str = "float32") -> float:
    """Floating-point operations per second of the multiply-adds that products of this precision use, in registers: the
    best of four short measurements."""
    level, precision = level_argument(isa), matmul_precision_number(matmul_precision)
    return float(max(lib.gg_peak_flops(level, precision, threads, 0.05) for _ in range(4)))


@cache
def isa_levels() -> tuple[str, ...]:
    """ISA levels this build has and this CPU runs, best first."""
    names, level = [], 0
    while (name := lib.gg_isa_name(level)) != ffi.NULL:
        if lib.gg_isa_supported(level):
            names.append(ffi.string(name).decode())
        level += 1
    return tuple(names)
