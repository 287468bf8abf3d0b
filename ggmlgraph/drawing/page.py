"""A diagram as one HTML file in which blocks fold and unfold at a click, and which asks nothing of any other place.

A layout is drawn for each way in which blocks can be folded, so that the script only shows one of them; without the
script they are unfolded. What is inside a part is a picture of its own, which a click shows instead. Everything that
comes from a graph is escaped. Used by `ggmlgraph draw`.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import product

from ggmlgraph.drawing.amounts import told
from ggmlgraph.drawing.diagram import Diagram
from ggmlgraph.drawing.layout import layout
from ggmlgraph.drawing.svg import STYLE, svg

MOST_FOLDED = 5  # blocks that fold, those with most inside: there is a layout for each way of folding them
PAGE_STYLE = (
    "body{margin:0;background:var(--paper);color:var(--ink);font:14px/1.5 system-ui,sans-serif}"
    "header{padding:1rem 1.5rem}h1{font-size:1.1rem;margin:0}p{margin:.2rem 0;color:var(--faint)}"
    "main{overflow-x:auto;padding:0 1rem 1rem}[hidden]{display:none}button{font:inherit}"
    "main svg{display:block;margin:auto}[data-folds],[data-part]{cursor:pointer}"
    "[tabindex]:focus-visible{outline:2px solid #d55e00}@media print{[tabindex]{cursor:auto}}"
)
SCRIPT = """
const all = (query, where = document) => [...where.querySelectorAll(query)];
const trail = [], back = document.getElementById("back");
let figure = document.querySelector("[data-figure]");
const path = (each) => each.dataset.block ?? each.dataset.part;
function focus(where, query) {
  const there = where.querySelector(query);
  if (there) there.focus({preventScroll: true});
}
function show(next) {
  figure.hidden = true; figure = next; figure.hidden = false; back.hidden = !trail.length;
}
function toggle(block) {
  const at = figure.dataset.blocks.split(" ").indexOf(path(block)), now = block.closest("[data-state]");
  const state = [...now.dataset.state].map((bit, i) => i === at ? (bit === "1" ? "0" : "1") : bit).join("");
  for (const each of figure.children) each.hidden = each.dataset.state !== state;
  focus(figure.querySelector(`[data-state="${state}"]`), `[data-block="${path(block)}"]`);
}
function enter(part) {
  trail.push([figure, path(part)]);
  show(document.getElementById(`${figure.id}-${path(part)}`));
  back.focus();
}
function leave() {
  const [last, part] = trail.pop() ?? [];
  if (!last) return;
  show(last);
  focus(last, `[data-part="${part}"]`);
}
for (const each of all("[data-block],[data-part]")) {
  const folds = each.closest("[data-figure]").dataset.blocks.split(" ").includes(path(each));
  if (each.dataset.block && !folds) continue;
  const act = (event) => {
    event.stopPropagation();
    event.preventDefault();
    (each.dataset.part ? enter : toggle)(each);
  };
  each.tabIndex = 0;
  each.setAttribute("role", "button");
  if (folds) { each.dataset.folds = ""; each.setAttribute("aria-expanded", each.dataset.open); }
  each.addEventListener("click", act);
  each.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") act(event); });
}
back.addEventListener("click", leave);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") leave(); });
"""


def page(diagram: Diagram, title: str, subtitle: str) -> str:
    """The whole file."""
    parts = any(box.is_part for box in diagram.boxes)
    hints = ["A click folds or unfolds a block."] * any(box.is_block for box in diagram.boxes)
    hints += ["A click on a part shows what is inside."] * parts
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}{PAGE_STYLE}</style></head>",
            f"<body><header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p><p>{escape(told(diagram.amounts))}</p>",
            f'<p>{" ".join(hints)} <button id="back" hidden>back (Escape)</button></p></header>',
            *("<main>", *_figures(diagram, title, "figure"), "</main>"),
            f"<script>{SCRIPT}</script></body></html>\n",
        )
    )


def _figures(diagram: Diagram, title: str, name: str) -> Iterator[str]:
    """A diagram in each of its states, then those of its parts. Bits of a state are its blocks, 1 unfolded."""
    inside = sorted(_blocks(diagram), key=lambda found: -found[1].n_boxes)[:MOST_FOLDED]
    blocks = sorted(path for path, _ in inside)
    hidden = " hidden" if name != "figure" else ""
    yield f'<div data-figure id="{name}" data-blocks="{" ".join(map(_dotted, blocks))}"{hidden}>'
    for bits in sorted(product("10", repeat=len(blocks)), reverse=True):
        closed = [path for path, bit in zip(blocks, bits, strict=True) if bit == "0"]
        folded = " hidden" if closed else ""
        yield f'<div data-state="{"".join(bits)}"{folded}>'
        yield from svg(layout(diagram, closed), title)
        yield "</div>"
    yield "</div>"
    for path, part in _parts(diagram):
        yield from _figures(part, title, f"{name}-{_dotted(path)}")


def _dotted(path: tuple[int, ...]) -> str:
    return ".".join(map(str, path))


def _blocks(diagram: Diagram, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Diagram]]:
    """Repeated blocks, also those in others, and what is inside."""
    for i, box in enumerate(diagram.boxes):
        if box.inside and box.is_block:
            yield (*path, i), box.inside
            yield from _blocks(box.inside, (*path, i))


def _parts(diagram: Diagram, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Diagram]]:
    """Parts, also those in blocks, and what is inside."""
    for i, box in enumerate(diagram.boxes):
        if box.inside and box.is_block:
            yield from _parts(box.inside, (*path, i))
        elif box.inside:
            yield (*path, i), box.inside
