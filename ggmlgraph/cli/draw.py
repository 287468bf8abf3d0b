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
from ggmlgraph.drawing.operations import of_program
from ggmlgraph.drawing.page import page
from ggmlgraph.drawing.parts import parted
from ggmlgraph.drawing.svg import picture
from ggmlgraph.errors import UsageError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.interchange.ondemand import graph_of
from ggmlgraph.table.dialect import OUTPUT
from ggmlgraph.training.run import Run

MOST_BOXES = 1500  # that are drawn one by one; of more there are parts
MOST_INSIDE = 20_000  # that a page has pictures of, inside of parts; of more only the parts of parts
DEEP, FLAT = 9, 1
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
        items = fold(operations)
        drawn = diagram(items, operations)
        counts = f"{len(program.graph):,} tensors, {len(operations.listed):,} operations in {drawn.n_boxes:,} boxes"
        if drawn.n_boxes > MOST_BOXES:
            depth = 0 if output.suffix != ".html" else DEEP if drawn.n_boxes <= MOST_INSIDE else FLAT
            drawn = diagram(parted(items, operations), operations, depth)
            counts += f", drawn as {sum(box.role == 'part' for box in drawn.boxes)} parts"
        _write(output, _written(drawn, output.suffix, title, counts))
        told(f"{output}: {counts}")


def _write(output: Path, text: str) -> None:
    with durable.replacing(output) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _written(drawn: Diagram, suffix: str, title: str, counts: str) -> str:
    if suffix == ".dot":
        return dot(drawn, title)
    return page(drawn, title, counts) if suffix == ".html" else picture(layout(drawn), title)


def _program(runtime: Runtime, view: str) -> tuple[Program, int | None]:
    """What is drawn, and where it ends."""
    if view == "gradient":
        train = runtime.programs.train
        return train, train.n_gradient
    outputs = [runtime.graph.name(i) for i in runtime.graph.flagged(OUTPUT)]
    if view == "fused":
        return runtime.programs.forward(*outputs), None
    return Program(passes.copy(runtime.graph), Pool(1), None), None
