"""ggmlgraph: write a network in Python, export it as a ggml compute graph, train it on a CPU.

    graph = gg.trace(llama.loss, llama.Config(n_layer=4), batch=16, ctx=64)
    graph.save("graph.bin")
    with gg.Runtime(graph, threads=2) as rt: ...

Public is what `dir(ggmlgraph)` lists: the names below, and the ops that models are written with. They are imported when
first used, so that `ggmlgraph --help` stays fast; type checkers read `__init__.pyi`, which `make docs` writes.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "CheckpointError": "errors", "DataError": "errors", "FormatError": "errors", "GGError": "errors",
    "LimitError": "errors", "MemoryLimitError": "errors", "ShapeError": "errors", "UnsupportedError": "errors",
    "UsageError": "errors",
    "Model": "library.model", "generate": "library.model", "load": "library.model", "tokenizer": "library.vocabulary",
    "Outcome": "library.trainer", "Trainer": "library.trainer",
    "Adafactor": "execution.optimizers", "AdamW": "execution.optimizers", "Lion": "execution.optimizers",
    "Muon": "execution.optimizers",
    "NorMuon": "execution.optimizers", "SGD": "execution.optimizers",
    "ScheduleFree": "execution.optimizers",
    "Dim": "graphfile.dim", "Graph": "tracing.tracer", "Params": "tracing.params", "Runtime": "execution.runtime",
    "Tensor": "tracing.tensor", "trace": "tracing.tracer",
    "equal": "tracing.arithmetic", "logical_not": "tracing.arithmetic",
    "scan": "tracing.scan",
    "conv1d": "tracing.convolution", "conv2d": "tracing.convolution", "conv_transpose1d": "tracing.convolution",
    "conv_transpose2d": "tracing.convolution", "group_norm": "tracing.normalization",
    "avg_pool1d": "tracing.pooling", "avg_pool2d": "tracing.pooling", "max_pool1d": "tracing.pooling",
    "max_pool2d": "tracing.pooling",
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
    "arange": "tracing.constants", "constant": "tracing.constants", "einsum": "tracing.einsum",
    "stop_gradient": "tracing.gradients",
    "flip": "tracing.indexing", "gather": "tracing.indexing",
    "argmax": "tracing.reductions", "argmin": "tracing.reductions", "cumsum": "tracing.reductions",
    "log_softmax": "tracing.reductions", "logsumexp": "tracing.reductions", "max": "tracing.reductions",
    "mean": "tracing.reductions", "min": "tracing.reductions", "softmax": "tracing.reductions",
    "sum": "tracing.reductions", "var": "tracing.reductions",
    "clamp": "tracing.selection", "maximum": "tracing.selection", "minimum": "tracing.selection",
    "tril": "tracing.selection", "triu": "tracing.selection", "where": "tracing.selection",
    "concat": "tracing.layout", "pad": "tracing.layout", "split": "tracing.layout", "stack": "tracing.layout",
    "zeros": "tracing.initializers",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return [*_HOMES, *_ops()]
    if name in _HOMES:
        return _public(name)
    if name in _ops():
        return getattr(import_module("ggmlgraph.table.ops"), name)
    if name.startswith("__"):
        raise AttributeError(f"module 'ggmlgraph' has no attribute {name!r}")
    here = import_module("ggmlgraph.errors").here
    raise AttributeError(f"{here()}: module 'ggmlgraph' has no attribute {name!r}{_why(name)}")


@cache
def _public(name: str) -> Any:
    """A name of ours; functions that models call check how they are called."""
    found = getattr(import_module(f"ggmlgraph.{_HOMES[name]}"), name)
    if not _HOMES[name].startswith("tracing.") or isinstance(found, type):
        return found
    return import_module("ggmlgraph.tracing.calls").checked(found)


def _ops() -> list[str]:
    """The ops of the table that models are written with."""
    return [name for names in import_module("ggmlgraph.table.ops").PURPOSES.values() for name in names]


def _why(name: str) -> str:
    """What a name that is not public might have been meant for."""
    ops = import_module("ggmlgraph.table.ops")
    op = import_module("ggmlgraph.table.op").TABLE.get(name)
    if op and name in ops.WRITTEN:
        return f": a model says {ops.WRITTEN[name]}"
    if op:
        what = "ggml has not" if op.ggml is None else "gradients and the like are made of"
        return f": it is an op of the runtime's own, which {what}, so no model can be written with it"
    close = get_close_matches(name, [*_HOMES, *_ops()], 1)
    return f": did you mean {close[0]!r}?" if close else ""


def __dir__() -> list[str]:
    return sorted(["__version__", *_HOMES, *_ops()])
