"""A layout as SVG: one file that any browser shows, in light and dark, with nothing from elsewhere.

Everything that comes from a graph is text and is escaped. Used by `ggmlgraph draw` and by `page`.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import pairwise

from ggmlgraph.drawing.amounts import brief, told
from ggmlgraph.drawing.diagram import Box
from ggmlgraph.drawing.layout import HEADER, LINE, PADDING, Layout, Placed, Wire, shown

FONT = 'ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace'
# By role: colours that stay apart for all kinds of colour sight (Okabe & Ito 2008), pale behind text.
COLOURS = {
    "product": "#0072b2", "attention": "#cc79a7", "softmax": "#cc79a7", "norm": "#009e73", "rows": "#56b4e9",
    "loss": "#d55e00", "output": "#d55e00", "update": "#e69f00", "input": "#f0e442", "port": "#999999",
    "repeat": "#0072b2", "part": "#56b4e9", "other": "#999999",
}  # fmt: skip
STYLE = (
    ":root{--paper:#fff;--ink:#1b1b1b;--faint:#666;--wire:#888}"
    "@media(prefers-color-scheme:dark){:root{--paper:#16181c;--ink:#eceff4;--faint:#a0a6b0;--wire:#7a808a}}"
    ".paper{fill:var(--paper)}.wire{fill:none;stroke:var(--wire);stroke-width:1.2}.tip{fill:var(--wire)}"
    f".graph text{{fill:var(--ink);font:11px {FONT}}}.graph .title{{font-weight:600}}.graph .faint{{fill:var(--faint)}}"
    ".box{fill-opacity:.16;stroke-opacity:.9}.frame{fill-opacity:.05;stroke-width:1.6}"
    ".port{stroke-dasharray:3 3}"
) + "".join(f".{role}{{fill:{colour};stroke:{colour}}}" for role, colour in COLOURS.items())


def picture(layout: Layout, title: str) -> str:
    """A whole SVG file."""
    return "\n".join((*svg(layout, title, f"<style>{STYLE}</style>"), ""))


def svg(layout: Layout, title: str, head: str = "") -> Iterator[str]:
    """The element; a block has `data-block`, its numbers, and a part `data-part`, which are where `page` finds them."""
    width, height = f"{layout.width:.0f}", f"{layout.height:.0f}"
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="graph" role="img" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">'
    )
    yield f'<title>{escape(title)}</title>{head}<rect class="paper" width="100%" height="100%"/>'
    yield from drawn(layout)
    yield "</svg>"


def drawn(layout: Layout) -> Iterator[str]:
    """The arrows, then the boxes, which cover their ends."""
    for wire in layout.wires:
        yield _wire(wire)
    for placed in layout.boxes:
        number = ".".join(map(str, placed.path))
        block = f' data-block="{number}" data-open="{placed.inside is not None}"'.lower()
        kind = block if placed.box.is_block else f' data-part="{number}"' if placed.box.is_part else ""
        where = f'transform="translate({placed.x:.1f} {placed.y:.1f})"'
        yield f"<g{kind} {where}>"
        yield f"<title>{escape(_tooltip(placed.box))}</title>"
        yield from _frame(placed) if placed.inside else _box(placed)
        yield "</g>"


def _wire(wire: Wire) -> str:
    """Straight through the layers it passes, bent between them."""
    path = [f"M{wire.points[0][0]:.1f} {wire.points[0][1]:.1f}"]
    for (x0, y0), (x1, y1) in pairwise(wire.points):
        middle = (y0 + y1) / 2
        straight = f"V{y1:.1f}" if x0 == x1 else f"C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}"
        path.append(straight)
    x, y = wire.points[-1]
    tip = f'<path class="tip" d="M{x:.1f} {y:.1f}l-3.5 -6h7z"/>'
    return f'<g><title>{escape(wire.label)}</title><path class="wire" d="{"".join(path)}"/>{tip}</g>'


def _box(placed: Placed) -> Iterator[str]:
    box = placed.box
    yield _outline(placed, "box")
    for i, text in enumerate(filter(None, (box.heading, *box.lines, brief(box.amounts)))):
        yield _text(text, i, "faint" if i else "title")


def _frame(placed: Placed) -> Iterator[str]:
    """A repeated block: its title and what is inside."""
    inside = placed.inside
    assert inside is not None
    yield _outline(placed, "frame")
    yield _text(placed.box.heading, 0, "title")
    yield _text(brief(placed.box.amounts), 1, "faint")
    yield f'<g transform="translate({(placed.width - inside.width) / 2:.1f} {HEADER:.1f})">'
    yield from drawn(inside)
    yield "</g>"


def _text(text: str, line: int, kind: str) -> str:
    return f'<text class="{kind}" x="{PADDING}" y="{LINE * (line + 1):.1f}">{escape(shown(text))}</text>'


def _outline(placed: Placed, kind: str) -> str:
    role = placed.box.role
    return (
        f'<rect class="{kind} {role}" width="{placed.width:.1f}" height="{placed.height:.1f}" '
        f'rx="{12 if role in ("input", "port") else 5}"/>'
    )


def _tooltip(box: Box) -> str:
    return "\n".join(filter(None, (box.heading, *box.lines, told(box.amounts))))
