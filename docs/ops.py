"""Print docs/ops.md, the reference of all ops, from the op table. Run by `make docs`; a test keeps the page current."""

from __future__ import annotations

from collections.abc import Iterator

import ggmlgraph.table.ops  # noqa: F401  (fills the table)
from ggmlgraph.table.op import TABLE, Op

HEAD = """# Ops

Made from the op table by `make docs`. Shapes are in numpy order. *ggml* is the op that a file holds; an op without one
lives only inside the runtime. *Derivative*: whether the gradient pass can go through it.
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


def page() -> Iterator[str]:
    """The lines of the page."""
    yield HEAD
    for op in TABLE.values():
        derivative = "yes" if op.vjp else "zero" if op.no_gradient else "no"
        yield f"## `{signature(op)}`\n"
        yield f"*ggml*: {place(op)} · *derivative*: {derivative}\n"
        yield op.doc + "\n"


if __name__ == "__main__":
    print("\n".join(page()), end="")
