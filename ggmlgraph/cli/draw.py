"""`ggmlgraph draw graph.bin -o g.svg`: the graph as boxes, its repeated blocks folded; or its memory over time."""

from __future__ import annotations

from pathlib import Path

from ggmlgraph import durable
from ggmlgraph.cli.told import told
from ggmlgraph.core import passes
from ggmlgraph.core.program import Pool, Program
from ggmlgraph.drawing import plan
from ggmlgraph.drawing.diagram import Diagram, diagram
from ggmlgraph.drawing.dot import dot
from ggmlgraph.drawing.fold import fold
from ggmlgraph.drawing.layout import layout
from ggmlgraph.drawing.operations import Operations, of_program
from ggmlgraph.drawing.page import page
from ggmlgraph.drawing.svg import picture
from ggmlgraph.errors import UnsupportedError, UsageError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.interchange.ondemand import graph_of
from ggmlgraph.table.dialect import OUTPUT
from ggmlgraph.training.run import Run

MOST_BOXES = 1500  # that a person could make anything of
FORMATS = (".svg", ".html", ".dot")


def command(path: Path, output: Path, view: str, memory: bool, batch: int | None, ctx: int | None) -> None:
    """Write a picture of a graph, or of its memory."""
    if output.suffix not in FORMATS:
        raise UsageError(f"-o {output}: its name ends in none of {', '.join(FORMATS)}")
    if memory and output.suffix != ".svg":
        raise UsageError(f"-o {output}: --plan draws .svg alone")
    run = Run.open(graph_of(path, told))
    with Runtime(run.graph, batch=batch, ctx=ctx, memory_limit=1 << 62, roles=run.roles) as runtime:
        program, end = _program(runtime, view)
        title = f"{runtime.metadata.model or path.name}, {view}"
        if memory:
            _write(output, plan.picture(program, title))
            return
        operations = of_program(program, end)
        drawn = diagram(fold(operations), operations)
        if drawn.n_boxes > MOST_BOXES:
            raise UnsupportedError(
                f"{path}: {drawn.n_boxes:,} boxes are left of {len(operations.listed):,} operations where what repeats "
                f"is folded; pictures end at {MOST_BOXES:,}"
            )
        counts = _counts(program, operations, drawn)
        _write(output, _written(drawn, output.suffix, title, counts))
        told(f"{output}: {counts}")


def _write(output: Path, text: str) -> None:
    with durable.replacing(output) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _written(drawn: Diagram, suffix: str, title: str, counts: str) -> str:
    if suffix == ".dot":
        return dot(drawn, title)
    return page(drawn, title, counts) if suffix == ".html" else picture(layout(drawn), title)


def _counts(program: Program, operations: Operations, drawn: Diagram) -> str:
    return f"{len(program.graph):,} tensors, {len(operations.listed):,} operations in {drawn.n_boxes:,} boxes"


def _program(runtime: Runtime, view: str) -> tuple[Program, int | None]:
    """What is drawn, and where it ends."""
    if view == "gradient":
        train = runtime.programs.train
        return train, train.n_gradient
    outputs = [runtime.graph.name(i) for i in runtime.graph.flagged(OUTPUT)]
    if view == "fused":
        return runtime.programs.forward(*outputs), None
    return Program(passes.copy(runtime.graph), Pool(1), None), None
