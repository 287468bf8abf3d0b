"""Graphs out of graphs: other sizes, fused ops, gradients, the optimiser; each pass is one of the C library's.

What a pass says of a graph names its node. Used by `execution`, by decoding and by the tracer's check of derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from ggmlgraph.core.boundary import OP_NUMBERS, call, ffi, lib
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.errors import UsageError

FUSIONS = {
    "norm_gain": lib.GG_FUSE_NORM_GAIN,
    "swiglu": lib.GG_FUSE_SWIGLU,
    "cross_entropy": lib.GG_FUSE_CROSS_ENTROPY,
    "attention": lib.GG_FUSE_ATTENTION,
    "repeat": lib.GG_FUSE_REPEAT,
    "accumulate": lib.GG_FUSE_ACCUMULATE,
}


def fusion_mask(names: Collection[str]) -> int:
    """GG_FUSE_* of names in FUSIONS, together. Raises UsageError for any other."""
    if unknown := sorted(set(names) - set(FUSIONS)):
        raise UsageError(f"fusion {unknown[0]!r} is not one of {', '.join(FUSIONS)}")
    return sum(FUSIONS[name] for name in set(names))


def copy(graph: CoreGraph) -> CoreGraph:
    """The same graph, to be changed: the memory of the leafs is shared."""
    return graph.derived(call(lib.gg_resize, graph.handle, 0, *[ffi.NULL] * 3))


def resize(
    graph: CoreGraph, ids: Sequence[int], ne: Sequence[int], words: Sequence[int], where: Callable[[int], str]
) -> CoreGraph:
    """The graph with other sizes, four in the file's order, of the tensors `ids`, and the first two words of op_params
    where they are views or scales; the rest follows."""
    return graph.derived(call(lib.gg_resize, graph.handle, len(ids), ids, ne, words, where=where))


def refine(graph: CoreGraph, tensor_id: int, op: str) -> None:
    """Name the exact form of an op that ggml approximates, or what one of ggml's stands for."""
    call(lib.gg_refine, graph.handle, tensor_id, op.encode(), where=lambda _: "metadata: ")


def dropout(graph: CoreGraph, rates: Mapping[int, float]) -> CoreGraph:
    """The graph to be trained, in which these nodes drop elements; ids are one higher, see gg_dropout."""
    ids = sorted(rates)
    return graph.derived(call(lib.gg_dropout, graph.handle, len(ids), ids, [rates[i] for i in ids]))


def fuse(graph: CoreGraph, roots: Sequence[int], fusions: int, *, train: bool = False) -> CoreGraph:
    """What `roots` and gradients need of a graph, with patterns of ops fused: a sum of FUSIONS says which."""
    mask = fusions & lib.GG_FUSE_DIFFERENTIABLE
    return graph.derived(call(lib.gg_fuse, graph.handle, len(roots), list(roots), int(train), mask))


def fuse_gradients(graph: CoreGraph, roots: Sequence[int], fusions: int) -> CoreGraph:
    """The same for patterns of gradients, of a graph that has them."""
    mask = fusions & lib.GG_FUSE_GRADIENTS
    return graph.derived(call(lib.gg_fuse, graph.handle, len(roots), list(roots), 0, mask))


def cache(graph: CoreGraph, inputs: Sequence[int], capacity: int, shared: CoreGraph | None) -> CoreGraph:
    """The forward graph for a text whose earlier positions were computed before; see gg_cache."""
    other = ffi.NULL if shared is None else shared.handle
    return graph.derived(call(lib.gg_cache, graph.handle, len(inputs), list(inputs), capacity, other))


# ---------------------------------------------------------------- training


def differentiate(graph: CoreGraph, loss: int) -> None:
    """Append the gradient of `loss` with respect to every parameter."""
    call(lib.gg_grad, graph.handle, loss, where=lambda node: f"{graph.label(node)}: " if node >= 0 else "")


def check_derivatives(graph: CoreGraph, loss: int, where: Callable[[int], str]) -> None:
    """Raise UnsupportedError if an op that the loss needs has no derivative; `graph` stays as it is."""
    call(lib.gg_grad, copy(graph).handle, loss, where=where)


def gradient_of(graph: CoreGraph, tensor_id: int) -> int:
    """Id of a tensor's gradient, -1 if it has none."""
    return int(lib.gg_grad_of(graph.handle, tensor_id))


def recompute_levels(graph: CoreGraph, loss: int) -> int:
    """How far `recompute` can go."""
    return int(call(lib.gg_recompute_levels, graph.handle, loss))


def recompute(graph: CoreGraph, loss: int, level: int) -> CoreGraph:
    """A differentiated graph that keeps fewer activations and computes more again. Ids up to `loss` stay."""
    return graph.derived(call(lib.gg_recompute, graph.handle, loss, level))


def accumulate(graph: CoreGraph) -> int:
    """Add gradients up over micro-batches; id of the input that says whether to keep what is there (1) or not (0)."""
    return int(call(lib.gg_accumulate, graph.handle))


def optimize(graph: CoreGraph, updates: Mapping[int, tuple[str, float, float, bool, bool]]) -> None:
    """Append clipping, and what updates each of these parameters: an op of the table, factors of its step and of what
    decay takes, whether that is cautious, and whether an average is kept."""
    rows = ffi.new("gg_update[]", len(updates))
    for row, (param, (op, rate, decay, cautious, averaged)) in zip(rows, updates.items(), strict=True):
        row.param, row.op, row.rate, row.decay = param, OP_NUMBERS[op], rate, decay
        row.cautious, row.averaged = cautious, averaged
    call(lib.gg_optimize, graph.handle, len(updates), rows)
