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
    from ggmlgraph.execution.runtime import Runtime as Runtime
    from ggmlgraph.graphfile.dim import Dim as Dim
    from ggmlgraph.tracing.arithmetic import equal as equal
    from ggmlgraph.tracing.arithmetic import logical_not as logical_not
    from ggmlgraph.tracing.attention import attention as attention
    from ggmlgraph.tracing.dropout import dropout as dropout
    from ggmlgraph.tracing.indexing import flip as flip
    from ggmlgraph.tracing.indexing import gather as gather
    from ggmlgraph.tracing.initializers import from_array as from_array
    from ggmlgraph.tracing.initializers import full as full
    from ggmlgraph.tracing.initializers import kaiming_normal as kaiming_normal
    from ggmlgraph.tracing.initializers import kaiming_uniform as kaiming_uniform
    from ggmlgraph.tracing.initializers import normal as normal
    from ggmlgraph.tracing.initializers import ones as ones
    from ggmlgraph.tracing.initializers import orthogonal as orthogonal
    from ggmlgraph.tracing.initializers import residual as residual
    from ggmlgraph.tracing.initializers import truncated_normal as truncated_normal
    from ggmlgraph.tracing.initializers import uniform as uniform
    from ggmlgraph.tracing.initializers import xavier_normal as xavier_normal
    from ggmlgraph.tracing.initializers import xavier_uniform as xavier_uniform
    from ggmlgraph.tracing.initializers import zeros as zeros
    from ggmlgraph.tracing.inputs import Float as Float
    from ggmlgraph.tracing.inputs import Ids as Ids
    from ggmlgraph.tracing.layout import concat as concat
    from ggmlgraph.tracing.layout import pad as pad
    from ggmlgraph.tracing.layout import split as split
    from ggmlgraph.tracing.layout import stack as stack
    from ggmlgraph.tracing.losses import bce as bce
    from ggmlgraph.tracing.losses import cross_entropy as cross_entropy
    from ggmlgraph.tracing.losses import huber as huber
    from ggmlgraph.tracing.losses import kl as kl
    from ggmlgraph.tracing.losses import mse as mse
    from ggmlgraph.tracing.params import Params as Params
    from ggmlgraph.tracing.rotary import RotaryScaling as RotaryScaling
    from ggmlgraph.tracing.rotary import rotate as rotate
    from ggmlgraph.tracing.tensor import Tensor as Tensor
    from ggmlgraph.tracing.tracer import Graph as Graph
    from ggmlgraph.tracing.tracer import trace as trace

    # isort: split
    # Last, for where two have one name: the one above is public, not the table's.
    from ggmlgraph.table.ops import *  # type: ignore[assignment]  # noqa: F403

_HOMES = {
    "Dim": "graphfile.dim", "Graph": "tracing.tracer", "Params": "tracing.params", "Runtime": "execution.runtime",
    "Tensor": "tracing.tensor", "trace": "tracing.tracer",
    "equal": "tracing.arithmetic", "logical_not": "tracing.arithmetic",
    "attention": "tracing.attention", "dropout": "tracing.dropout",
    "RotaryScaling": "tracing.rotary", "rotate": "tracing.rotary",
    "bce": "tracing.losses", "cross_entropy": "tracing.losses", "huber": "tracing.losses", "kl": "tracing.losses",
    "mse": "tracing.losses",
    "Float": "tracing.inputs", "Ids": "tracing.inputs",
    "from_array": "tracing.initializers", "full": "tracing.initializers", "kaiming_normal": "tracing.initializers",
    "kaiming_uniform": "tracing.initializers", "normal": "tracing.initializers", "ones": "tracing.initializers",
    "orthogonal": "tracing.initializers", "residual": "tracing.initializers",
    "truncated_normal": "tracing.initializers", "uniform": "tracing.initializers",
    "xavier_normal": "tracing.initializers", "xavier_uniform": "tracing.initializers",
    "flip": "tracing.indexing", "gather": "tracing.indexing",
    "concat": "tracing.layout", "pad": "tracing.layout", "split": "tracing.layout", "stack": "tracing.layout",
    "zeros": "tracing.initializers",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"ggmlgraph.{_HOMES[name]}"), name)
    table = import_module("ggmlgraph.table.ops")
    if name in import_module("ggmlgraph.table.op").TABLE:
        return getattr(table, name)
    raise AttributeError(f"module 'ggmlgraph' has no attribute {name!r}")
