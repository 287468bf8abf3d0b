"""How exact a runtime computes, to print. Used by `train` and `bench`."""

from __future__ import annotations

from ggmlgraph.core.levels import isa_levels
from ggmlgraph.execution.runtime import Runtime


def level(runtime: Runtime) -> str:
    """What a runtime computes with, to print: the ISA level, and the precision of products if it is not float32."""
    products = (
        "" if runtime.settings.matmul_precision == "float32" else f", {runtime.settings.matmul_precision} products"
    )
    return (runtime.settings.isa or isa_levels()[0]) + products
