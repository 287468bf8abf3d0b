"""A diagram as one HTML file in which blocks fold and unfold at a click, and which asks nothing of any other place.

A layout is drawn for each way in which the outermost blocks can be folded, so that the script only shows one of them;
without the script they are unfolded. Everything that comes from a graph is escaped. Used by `ggmlgraph draw`.
"""

from __future__ import annotations

from html import escape
from itertools import product

from ggmlgraph.drawing.amounts import told
from ggmlgraph.drawing.diagram import Diagram
from ggmlgraph.drawing.layout import layout
from ggmlgraph.drawing.svg import STYLE, svg

MOST_FOLDED = 3  # blocks that fold one by one; more of them fold all together
PAGE_STYLE = (
    "body{margin:0;background:var(--paper);color:var(--ink);font:14px/1.5 system-ui,sans-serif}"
    "header{padding:1rem 1.5rem}h1{font-size:1.1rem;margin:0}p{margin:.2rem 0;color:var(--faint)}"
    "main{overflow-x:auto;padding:0 1rem 1rem}[data-state][hidden]{display:none}"
    "[data-state] svg{display:block;margin:auto}[data-block]{cursor:pointer}"
    "[data-block]:focus-visible{outline:2px solid #d55e00}@media print{[data-block]{cursor:auto}}"
)
SCRIPT = """
const states = [...document.querySelectorAll("[data-state]")];
const blocks = states[0].dataset.state.length;
let state = states[0].dataset.state;
function show(next, block) {
  state = next;
  for (const each of states) each.hidden = each.dataset.state !== state;
  const there = document.querySelector(`[data-state="${state}"] [data-block="${block}"]`);
  if (there) there.focus({preventScroll: true});
}
function toggle(target) {
  const all = [...target.closest("svg").querySelectorAll("[data-block]")];
  const at = all.indexOf(target), flip = (bit) => bit === "1" ? "0" : "1";
  show(blocks === 1 && all.length > 1 ? flip(state) : [...state].map((bit, i) => i === at ? flip(bit) : bit).join(""),
    target.dataset.block);
}
for (const each of document.querySelectorAll("[data-block]")) {
  each.tabIndex = 0;
  each.setAttribute("role", "button");
  each.setAttribute("aria-expanded", each.dataset.open);
  each.addEventListener("click", () => toggle(each));
  each.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(each); }
  });
}
"""


def page(diagram: Diagram, title: str, subtitle: str) -> str:
    """The whole file. Bits of a state are the outermost blocks, 1 unfolded; or one bit is all of them."""
    blocks = [number for number, box in enumerate(diagram.boxes) if box.inside]
    together = len(blocks) > MOST_FOLDED
    n_bits = 1 if together or not blocks else len(blocks)
    figures = []
    for bits in sorted(product("10", repeat=n_bits), reverse=True):
        closed = [b for i, b in enumerate(blocks) if bits[0 if together else i] == "0"]
        hidden = " hidden" if "0" in bits else ""
        drawn = "\n".join(svg(layout(diagram, closed), title))
        figures.append(f'<div data-state="{"".join(bits)}"{hidden}>\n{drawn}\n</div>')
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}{PAGE_STYLE}</style></head>",
            f"<body><header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p><p>{escape(told(diagram.amounts))}</p>",
            f"<p>{'A click folds or unfolds a block.' if blocks else ''}</p></header>",
            *("<main>", *figures, "</main>"),
            f"<script>{SCRIPT}</script></body></html>\n",
        )
    )
