"""A diagram in the language of Graphviz, blocks as clusters. Used by `ggmlgraph draw`."""

from __future__ import annotations

from collections.abc import Iterator

from ggmlgraph.drawing.amounts import brief
from ggmlgraph.drawing.diagram import Box, Diagram
from ggmlgraph.drawing.svg import COLOURS


def dot(diagram: Diagram, title: str) -> str:
    """A whole file."""
    lines = [
        "digraph {",
        f"label={_quoted(title)}",
        'node [shape=box style="rounded,filled" fillcolor=white fontname="monospace" fontsize=10]',
        "compound=true",
        *_level(diagram, "n"),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _level(diagram: Diagram, prefix: str) -> Iterator[str]:
    """Boxes, then arrows; one to or from a block ends at its border, at the first or last thing inside."""
    for i, box in enumerate(diagram.boxes):
        yield from _box(box, f"{prefix}_{i}")
    for arrow in diagram.arrows:
        tail, source = _end(diagram.boxes[arrow.source], f"{prefix}_{arrow.source}", -1)
        head, target = _end(diagram.boxes[arrow.target], f"{prefix}_{arrow.target}", 0)
        borders = (f" ltail={source}" if source else "") + (f" lhead={target}" if target else "")
        yield f"{tail} -> {head} [tooltip={_quoted(arrow.label)}{borders}]"


def _end(box: Box, name: str, at: int) -> tuple[str, str]:
    """The node to which an arrow is drawn, in a block the first (at 0) or last (at -1), and the block whose border
    cuts it off."""
    if box.inside is None:
        return name, ""
    inner = range(len(box.inside.boxes))[at]
    return _end(box.inside.boxes[inner], f"{name}_{inner}", at)[0], f"cluster_{name}"


def _box(box: Box, name: str) -> Iterator[str]:
    text = _quoted("\n".join(filter(None, (box.heading, *box.lines, brief(box.amounts)))))
    colour = f'color="{COLOURS[box.role]}"'
    if box.inside is None:
        yield f"{name} [label={text} {colour}]"
        return
    yield f"subgraph cluster_{name} {{ label={text} {colour}"
    yield from _level(box.inside, name)
    yield "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
