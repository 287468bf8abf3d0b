"""Print docs/ops.md, the ops that a model can call, from the op table; with the argument `internal` those of the
runtime alone, docs/internal-ops.md. Run by `make docs`; a test keeps the pages current.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from inspect import getsource

import ggmlgraph as gg
from ggmlgraph.table import ops
from ggmlgraph.table.op import TABLE, Op

HEAD = """# Ops

What ggml computes, as a model calls it: `gg.NAME`. Most of it has a plainer spelling, the operators and methods of
tensors and the functions of [api.md](api.md), which are made of these. Made from the op table by `make docs`.

Shapes are in numpy order. *ggml* is the op that a file holds. *Derivative*: whether the gradient pass can go through
it. What only the runtime has is in [internal-ops.md](internal-ops.md).
"""
INTERNAL = """# The runtime's own ops

Made from the op table by `make docs`. No file has them and no model can call them: gradients, fused ops, the optimiser.
Raw forms of ggml's ops for which `gg` has a function of the same name are here too.
"""


def signature(op: Op) -> str:
    """The call, with defaults."""
    sources = [name + ("=None" if name in op.optional else "") for name in op.sources]
    params = [p.name if p.default is None else f"{p.name}={p.default:g}" for p in op.params]
    return f"{op.name}({', '.join([*sources, *params, *(['shape'] if op.sized else [])])})"


def place(op: Op) -> str:
    """Where ggml has it."""
    name = f"{op.ggml}.{op.unary}" if op.unary else op.ggml
    return f"{name}, exact form" if op.exact else name or "internal"


def sections() -> dict[str, list[Op]]:
    """The ops by the headings that the table's source has for them."""
    found: dict[str, list[Op]] = {}
    title = ""
    for line in getsource(ops).splitlines():
        if heading := re.match(r"# -{10,} (.*)", line):
            title = heading[1]
        if (stub := re.match(r"def (\w+)\(", line)) and stub[1] in TABLE:
            found.setdefault(title, []).append(TABLE[stub[1]])
    return found


def page(*, internal: bool) -> Iterator[str]:
    """The lines of a page."""
    yield INTERNAL if internal else HEAD
    for title, listed in sections().items():
        chosen = [op for op in listed if (op.name in gg._ops()) != internal]
        if chosen:
            yield f"## {title[0].upper()}{title[1:]}\n"
        for op in chosen:
            derivative = "yes" if op.vjp else "zero" if op.no_gradient else "no"
            yield f"### `{signature(op)}`\n"
            yield f"*ggml*: {place(op)} · *derivative*: {derivative}\n"
            yield op.doc + "\n"


if __name__ == "__main__":
    print("\n".join(page(internal="internal" in sys.argv)), end="")
