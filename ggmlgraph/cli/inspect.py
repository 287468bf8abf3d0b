"""`ggmlgraph inspect graph.bin`: parameters, inputs, memory, and the nodes themselves."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ggmlgraph.amounts import nbytes
from ggmlgraph.cli.terminal import say
from ggmlgraph.cli.told import told
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.importer import identify
from ggmlgraph.core.limits import Limits
from ggmlgraph.core.program import Program
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.interchange.ondemand import graph_of
from ggmlgraph.table.dialect import LOSS, OUTPUT
from ggmlgraph.tokenizers.leaf import tokenizer_from_bytes
from ggmlgraph.tracing import rotary
from ggmlgraph.training.run import Run

N_LARGEST = 5


def command(
    path: Path, nodes: bool, gradient: bool, batch: int | None, ctx: int | None, dialect: str | None, limits: Limits
) -> None:
    """Show what is in a graph file: model, inputs, parameters, memory plan."""
    run = Run.open(graph_of(path, told))
    dialect = dialect or identify(run.graph, limits)
    with Runtime(
        run.graph, batch=batch, ctx=ctx, memory_limit=1 << 62, dialect=dialect, limits=limits, roles=run.roles
    ) as runtime:
        sections = [_head(run.graph, dialect, runtime), _parameters(runtime), _programs(runtime)]
        if nodes:
            sections.append(_nodes("graph", runtime.graph, runtime.metadata.where))
        if gradient:
            sections.append(_nodes("training graph", runtime.programs.train.graph, runtime.metadata.where))
        for i, lines in enumerate(sections):
            say("\n" * (i > 0) + "\n".join(lines))


def _head(path: Path, dialect: str, runtime: Runtime) -> Iterator[str]:
    meta, tokenizer = runtime.metadata, runtime.tokenizer_bytes()
    yield f"file        {path}, {nbytes(path.stat().st_size)}, {len(runtime.graph)} tensors, dialect {dialect}"
    unused = () if meta.config.get("rope_scaling") else rotary.FIELDS
    config = ", ".join(f"{name} {value}" for name, value in meta.config.items() if name not in unused)
    yield f"model       {meta.model or 'unnamed'}{': ' if config else ''}{config}"
    sizes = ", ".join(f"{name} {value}" for name, value in runtime.sizes.items())
    yield f"sizes       {sizes or 'fixed'}{f': {meta.fixed}' if meta.fixed else ''}"
    for name in runtime.inputs:
        feed = meta.inputs.get(name, name)
        tensor_id = runtime.graph.find(name)
        yield f"input       {name} {_type(runtime.graph, tensor_id)}{f', filled with {feed}' if feed != name else ''}"
    for i in range(len(runtime.graph)):
        flags = runtime.graph.flags(i)
        if flags & OUTPUT:
            yield f"{'loss' if flags & LOSS else 'output':<12}{runtime.graph.name(i)} {_type(runtime.graph, i)}"
    if tokenizer is not None:
        parsed = tokenizer_from_bytes(tokenizer)
        yield f"tokenizer   {parsed.kind}, {parsed.n_vocab:,} ids"
    if meta.corpus:
        yield f"text        {meta.corpus}"
    for op in sorted(set(meta.exact.values())):
        n = sum(other == op for other in meta.exact.values())
        yield f"exact       {op} in {n} nodes; the file says what ggml has for it"
    for rate, n in sorted(Counter(meta.dropout.values()).items()):
        yield f"dropout     {rate:g} in {n} nodes, in training"


def _type(graph: CoreGraph, tensor_id: int) -> str:
    return f"{graph.dtype(tensor_id)}[{','.join(map(str, graph.shape(tensor_id)))}]"


# ---------------------------------------------------------------- parameters


def _parameters(runtime: Runtime) -> Iterator[str]:
    """The parameters in order; layers that are alike are one entry."""
    yield f"parameters  {runtime.n_params:,} in {len(runtime.params)} tensors"
    layers: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, array in runtime.weights().items():
        found = re.match(r"(.*?\.\d+)\.(.*)", name)
        scope, rest = (found[1], found[2]) if found else ("", name)
        layers.setdefault(scope or name, []).append((rest, array.shape))
    scopes = list(layers)
    while scopes:
        first = scopes.pop(0)
        members, last, n = layers[first], first, 1
        while scopes and layers[scopes[0]] == members and members[0][0] != first:
            last, n = scopes.pop(0), n + 1
        if members[0][0] == first:
            yield _parameter(2, first, members[0][1])
            continue
        total = sum(math.prod(shape) for _, shape in members)
        yield f"  {first}  {total:,}" if n == 1 else f"  {first} … {last}  {n} x {total:,}"
        for rest, shape in members:
            yield _parameter(4, rest, shape)


def _parameter(indent: int, name: str, shape: tuple[int, ...]) -> str:
    sizes = f"f32[{','.join(map(str, shape))}]"
    return f"{' ' * indent}{name:<{36 - indent}}{sizes:<20}{math.prod(shape):>14,}"


# ---------------------------------------------------------------- memory


def _programs(runtime: Runtime) -> Iterator[str]:
    """What each program needs: training if the graph has a loss, and each of its outputs."""
    graph = runtime.graph
    flags = {graph.name(i): graph.flags(i) for i in range(len(graph)) if graph.flags(i) & OUTPUT}
    if any(f & LOSS for f in flags.values()):
        program = runtime.programs.train
        yield from _program("training", program)
        least = runtime.programs.train_at(program.max_recompute).cost()
        yield f"  {nbytes(least.nbytes)} with all activations computed again, {least.flops / 1e9:,.2f} GFLOP"
    for name in flags:
        yield from _program(name, runtime.programs.forward(name))


def _program(name: str, program: Program) -> Iterator[str]:
    cost = program.cost()
    yield (
        f"{name}: {len(program.graph)} tensors, {cost.flops / 1e9:,.2f} GFLOP, {nbytes(cost.nbytes)}: "
        f"leafs {nbytes(cost.leaf_nbytes)}, arena {nbytes(cost.arena_nbytes)} "
        f"(at least {nbytes(cost.live_nbytes)}), work {nbytes(cost.work_nbytes)}"
    )
    graph = program.graph
    own = [i for i in range(len(graph)) if program.offset(i) >= 0 and graph.base(i) == i]
    largest = sorted(own, key=lambda i: -graph.nbytes(i))[:N_LARGEST]
    for i in largest:
        yield f"  {nbytes(graph.nbytes(i)):>10}  {_label(graph, i)} {_type(graph, i)} = {graph.op(i)}"


def _nodes(title: str, graph: CoreGraph, where: dict[str, str]) -> Iterator[str]:
    yield f"{title}: {len(graph)} tensors"
    for i in range(len(graph)):
        if graph.is_leaf(i):
            continue
        sources = ", ".join(_label(graph, s) for s in graph.src(i) if s >= 0)
        line = f"{_label(graph, i)} {_type(graph, i)} = {graph.op(i)}({sources})"
        place = where.get(graph.name(i))
        yield f"{line:<72}  # {place}" if place else line


def _label(graph: CoreGraph, tensor_id: int) -> str:
    return f"%{graph.label(tensor_id)}"
