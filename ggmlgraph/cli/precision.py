"""How exact matrix products are, as an option; `train` and `bench` take it."""

from __future__ import annotations

import click

from ggmlgraph.core import MATMUL_PRECISIONS, isa_levels
from ggmlgraph.runtime import Runtime

option = click.option(
    "--matmul-precision",
    type=click.Choice(list(MATMUL_PRECISIONS)),
    default="float32",
    show_default=True,
    help="bf16: matrix products round what they multiply to bfloat16 and add in float32; faster where the processor "
    "has AVX512-BF16.",
)


def level(runtime: Runtime) -> str:
    """What a runtime computes with, to print: the ISA level, and the precision of products if it is not float32."""
    products = "" if runtime.matmul_precision == "float32" else f", {runtime.matmul_precision} products"
    return (runtime.isa or isa_levels()[0]) + products
