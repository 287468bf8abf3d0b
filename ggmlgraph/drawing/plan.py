"""A program's memory over time: each tensor of the arena as long as it is kept, at the place that the plan gave it.

Time runs from left to right, one node after the other; from the bottom to the top are the bytes of the arena. Used by
`ggmlgraph draw --plan`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from ggmlgraph.core.program import Program
from ggmlgraph.drawing.amounts import binary
from ggmlgraph.drawing.diagram import role_of
from ggmlgraph.drawing.svg import STYLE
from ggmlgraph.table.dialect import OUTPUT

WIDTH, HEIGHT = 1100.0, 520.0  # pixels of the plot
LEFT, TOP, BOTTOM, RIGHT = 80.0, 58.0, 40.0, 20.0
LEAST = 0.25  # pixels of a tensor that is worth drawing
N_TICKS = 5


@dataclass(frozen=True)
class Kept:
    """Memory of one tensor."""

    id: int
    op: str
    offset: int
    nbytes: int
    born: int  # node that makes it
    last: int  # node that is the last to read it, or its views


def kept(program: Program) -> list[Kept]:
    """What lies in the arena, by the nodes that make it."""
    graph = program.graph
    last = list(range(len(graph)))
    for i in range(len(graph)):
        for source in (*graph.src(i), i):
            if source >= 0:
                base = graph.base(source)
                last[base] = max(last[base], len(graph) - 1 if graph.flags(source) & OUTPUT else i)
    own = (i for i in range(len(graph)) if graph.base(i) == i and program.offset(i) >= 0 and not graph.is_leaf(i))
    return [Kept(i, graph.op(i), program.offset(i), graph.nbytes(i), i, last[i]) for i in own]


def picture(program: Program, title: str) -> str:
    """A whole SVG file."""
    tensors, cost, n = kept(program), program.cost(), len(program.graph)
    width, height = LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM
    total = max(1, cost.arena_nbytes)
    needs = (
        f"arena {binary(cost.arena_nbytes)}, of which {binary(cost.live_nbytes)} at once; "
        f"leafs {binary(cost.leaf_nbytes)}; work {binary(cost.work_nbytes)}"
    )
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="graph" role="img" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" height="{height:.0f}">',
            f"<title>{escape(title)}</title><style>{STYLE}.box{{stroke-width:.3}}</style>",
            '<rect class="paper" width="100%" height="100%"/>',
            f'<text class="title" x="{LEFT}" y="22">{escape(title)}</text>',
            f'<text class="faint" x="{LEFT}" y="40">{escape(needs)}</text>',
            *_axes(total, n),
            *_tensors(program, tensors, total, n),
            "</svg>\n",
        )
    )


def _axes(total: int, n: int) -> Iterator[str]:
    for k in range(N_TICKS + 1):
        x, y = LEFT + WIDTH * k / N_TICKS, TOP + HEIGHT * (1 - k / N_TICKS)
        yield f'<path class="wire" d="M{LEFT - 4} {y:.1f}H{LEFT}M{x:.1f} {TOP + HEIGHT}v4"/>'
        yield _label(LEFT - 8, y + 4, "end", binary(total * k / N_TICKS))
        yield _label(x, TOP + HEIGHT + 18, "middle", str(n * k // N_TICKS))
    yield f'<path class="wire" d="M{LEFT} {TOP}V{TOP + HEIGHT}H{LEFT + WIDTH}"/>'
    yield _label(LEFT + WIDTH / 2, TOP + HEIGHT + 34, "middle", "node")


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="faint" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{text}</text>'


def _tensors(program: Program, tensors: list[Kept], total: int, n: int) -> Iterator[str]:
    graph = program.graph
    for tensor in tensors:
        height = HEIGHT * tensor.nbytes / total
        if height < LEAST:
            continue
        x, width = LEFT + WIDTH * tensor.born / n, max(0.5, WIDTH * (tensor.last + 1 - tensor.born) / n)
        y = TOP + HEIGHT * (1 - tensor.offset / total) - height
        what = f"{graph.label(tensor.id)} = {tensor.op} {list(graph.shape(tensor.id))}, {binary(tensor.nbytes)}"
        yield (
            f'<rect class="box {role_of(tensor.op)}" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" '
            f'height="{height:.2f}"><title>{escape(what)}: nodes {tensor.born} to {tensor.last}</title></rect>'
        )
