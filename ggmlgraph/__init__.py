"""ggmlgraph: write a network in Python, export it as a ggml compute graph, train it on a CPU.

    graph = gg.trace(llama.loss, llama.Config(n_layer=4), batch=16, ctx=64)
    graph.save("graph.bin")
    with gg.Runtime("graph.bin", threads=2) as rt: ...

Names are imported when first used, so that `ggmlgraph --help` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ggmlgraph.dim import Dim as Dim
    from ggmlgraph.initializers import normal as normal
    from ggmlgraph.initializers import ones as ones
    from ggmlgraph.initializers import residual as residual
    from ggmlgraph.initializers import zeros as zeros
    from ggmlgraph.ops import *  # noqa: F403
    from ggmlgraph.params import Params as Params
    from ggmlgraph.rotary import RotaryScaling as RotaryScaling
    from ggmlgraph.rotary import rotate as rotate
    from ggmlgraph.runtime import Runtime as Runtime
    from ggmlgraph.tensor import Tensor as Tensor
    from ggmlgraph.tracer import Graph as Graph
    from ggmlgraph.tracer import trace as trace

_HOMES = {
    "Dim": "dim", "Graph": "tracer", "Params": "params", "Runtime": "runtime", "Tensor": "tensor", "trace": "tracer",
    "RotaryScaling": "rotary", "rotate": "rotary",
    "normal": "initializers", "ones": "initializers", "residual": "initializers", "zeros": "initializers",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"ggmlgraph.{_HOMES[name]}"), name)
    table = import_module("ggmlgraph.ops")
    if name in import_module("ggmlgraph.optable").TABLE:
        return getattr(table, name)
    raise AttributeError(f"module 'ggmlgraph' has no attribute {name!r}")
