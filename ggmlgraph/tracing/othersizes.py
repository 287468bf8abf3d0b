"""Whether a file that is traced at one batch and ctx is the model at others: traced there again, and compared.

The tracer follows sizes by expressions (`Dim`), but a model is Python: it may take a size as a number (x / ctx), branch
on it, or ask for int(ctx). So the model's function is run once more at other sizes, and the graph, re-sized by its
expressions as a file is, must be what that gives. A factor of `scale` that follows by powers, as the 1/ctx of a mean
does, becomes a `Number` of the file; for whatever else does not follow, the graph keeps its sizes and says why. Used
when a graph is saved.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.importer import resized
from ggmlgraph.errors import GGError
from ggmlgraph.graphfile.metadata import Number
from ggmlgraph.table.op import TABLE

if TYPE_CHECKING:
    from ggmlgraph.tracing.tracer import Graph

Sizes = dict[str, int]
POWERS = (0, 1, -1, 0.5, -0.5, 2, -2)
ROUNDING = 1e-6  # relative, of a float32


def check(graph: Graph) -> None:
    """Give the graph the numbers that follow from its sizes, or fix it at them."""
    if graph.fixed or graph.trace_at is None:
        return
    others, failed = [], ""
    for sizes in _others(graph):
        at = " and ".join(f"{name} {n}" for name, n in sizes.items())
        try:
            others.append((graph.trace_at(sizes), sizes, at))
        except Exception as error:  # whatever a model raises
            failed = failed or f"at {at} the model cannot be traced: {error}"
    for other, sizes, at in others:
        if not graph.fixed:
            _compare(graph, other, sizes, at)
    if failed and not others:
        graph.fix(failed)


def _others(graph: Graph) -> Iterator[Sizes]:
    """Sizes to try, larger and smaller; one that the model takes is enough. Ratios tell batch from ctx."""
    larger, smaller = {"batch": 3, "ctx": 2}, {"batch": 5, "ctx": 0.5}
    if graph.sizes:
        for factors in (larger, smaller):
            sizes = {name: max(1, int(factors[name] * n)) for name, n in graph.sizes.items()}
            yield {name: min(n, graph.limits.get(name, n)) for name, n in sizes.items()}


def _compare(graph: Graph, other: Graph, sizes: Sizes, at: str) -> None:
    exprs = {i: found for i in range(len(graph.nodes)) if (found := graph.exprs(i))}
    try:
        core = resized(graph.core, exprs, sizes)
    except GGError as error:
        graph.fix(f"at {at} it cannot be re-sized: {error}")
        return
    for i, node in enumerate(graph.nodes):
        if i < len(other.nodes) and node.values and node.values != (other.nodes[i].values or node.values):
            graph.fix(f"{node.where}: the constant {node.name} depends on {' or '.join(sizes)}")
            return
        if i >= len(other.nodes) or _wiring(core, i) != _wiring(other.core, i):
            graph.fix(f"{node.where}: at {at} the model is another graph from here on")
            return
        if node.op is not None and core.op_params(i) != other.core.op_params(i):
            number = _number(graph, other, i, sizes) if node.op is TABLE["scale"] else None
            if number is None:
                graph.fix(f"{node.where}: {node.op.name} has a number that depends on {' or '.join(sizes)}")
                return
            graph.numbers[i] = number
    if other.dropouts != graph.dropouts:
        graph.fix(f"at {at} dropout has other rates")
    if len(other.nodes) > len(graph.nodes):
        graph.fix(f"at {at} the model is a larger graph")


def _wiring(core: CoreGraph, i: int) -> tuple[Any, ...]:
    return core.op(i), core.dtype(i), core.src(i), core.shape(i, 4), core.strides(i)


def _number(graph: Graph, other: Graph, i: int, sizes: Sizes) -> Number | None:
    """What a node multiplies by as a product of powers of the sizes, the simplest that gives both values."""
    here, there = (float(g.nodes[i].params["s"]) for g in (graph, other))
    names = list(sizes)
    for powers in sorted(product(POWERS, repeat=len(names)), key=lambda p: sum(map(abs, p))):
        number = Number(1.0, dict(zip(names, powers, strict=True)))
        factor = here / number.at(graph.sizes)
        number = Number(factor, {name: power for name, power in number.powers.items() if power})
        if abs(number.at(sizes) - there) <= ROUNDING * abs(there) and _float32(number.at(graph.sizes)) == _float32(
            here
        ):
            return number
    return None


def _float32(value: float) -> bytes:
    return struct.pack("<f", value)
