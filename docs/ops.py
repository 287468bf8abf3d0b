"""Print docs/ops.md, what models are written with, by purpose, a line and an example each; with the argument `internal`
the op table's ops that no model calls, docs/internal-ops.md. Run by `make docs`; a test keeps the pages current.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from inspect import getsource
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from spellings import LAYERS, SPELLINGS

import ggmlgraph as gg
from ggmlgraph.table import ops
from ggmlgraph.table.op import TABLE, Op

HEAD = """# What models are written with

By purpose, a line and an example each; the examples are run in the tests. All of it is written in ggml's own ops, so
that stock ggml computes the file: [language.md](language.md) says which, beside numpy's and torch's way. Arguments,
shapes and errors are in [api.md](api.md), and of the ops below the tables; `help(gg.NAME)` says the same. Layers with
parameters, `p.linear` and so on, are in [inputs.md](inputs.md). Made by `make docs`.
"""
OPERATORS = (
    ("x + y, x - y, x * y, x / y, -x", "Of elements, broadcast as numpy's; one of them may be a number.", "1 - x"),
    ("x ** p", "Powers: whole ones by products, 0.5 and -0.5 by roots, others by exp and log.", "x ** 2"),
    ("x @ y", "Matrix product, as numpy's; x @ w.T costs no copy of w.", "x @ y.T"),
    ("x > y, >=, <, <=, ==, !=", "Masks: 1 where it is so, else 0.", "x > 0"),
    ("~m, m & n, m | n", "Not, and, or of masks.", "(x > y) & (x < 1)"),
    ("x[...]", "Whole numbers, slices of any step, None and ..., as numpy's.", "x[..., None, :]"),
)
METHODS = ("reshape", "permute", "T", "flatten", "squeeze", "unsqueeze", "swapaxes", "float", "cont", "named")
SECTIONS = {  # modules of ggmlgraph.tracing, and what ops.PURPOSES has under the same title
    "Functions of elements": (), "Activations": (), "Masks and choices": ("arithmetic", "selection"),
    "Indexing and layout": ("indexing", "layout"), "Reductions": ("reductions",), "Products": ("einsum",),
    "Constants": ("constants",), "Normalisation": ("normalization",), "Attention": ("attention", "rotary"),
    "Convolution and pooling": ("convolution", "pooling"), "Losses": ("losses",), "Loops": ("scan",),
    "Training": ("dropout", "gradients"),
}  # fmt: skip
INTERNAL = """# Ops that no model calls

Made from the op table by `make docs`: ops of ggml's that models say otherwise, and the runtime's own, which no file
has: gradients, fused ops, the optimiser. Raw forms of ops for which `gg` has a function of that name are here too.
"""


def signature(op: Op) -> str:
    """The call, with defaults."""
    sources = [name + ("=None" if name in op.optional else "") for name in op.sources]
    params = [p.name if p.default is None else f"{p.name}={p.default:g}" for p in op.params]
    return f"{op.name}({', '.join([*sources, *params, *(['shape'] if op.sized else [])])})"


def place(op: Op) -> str:
    """Where ggml has it, and how a model says it."""
    name = f"{op.ggml}.{op.unary}" if op.unary else op.ggml
    written = f" · *a model says* `{ops.WRITTEN[op.name]}`" if op.name in ops.WRITTEN else ""
    return (f"{name}, exact form" if op.exact else name or "internal") + written


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


def example(name: str, before: str = "gg.") -> str:
    """A call of it that the tests run, or of the method of its name."""
    pattern = re.compile(rf"(?:^|[^\w.]){re.escape(before)}{name}\b" if before == "gg." else rf"^\w+\.{name}\b")
    found = [case.ours for case in (*SPELLINGS, *LAYERS) if pattern.search(case.ours)]
    starting = [text for text in found if text.startswith(before + name)] or found
    return starting[0] if starting else example(name, "x.") if before == "gg." else ""


def row(call: str, what: str, how: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(text.replace("|", r"\|") for text in (f"`{call}`", what, f"`{how}`" if how else "")) + " |"


def first_sentence(what: object) -> str:
    """Of a docstring."""
    paragraph = " ".join((inspect.getdoc(what) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.;])(?<!al\.)(?<!\.\.\.)\s", paragraph)[0].rstrip(".;") + "."


def by_purpose() -> Iterator[str]:
    """The tables."""
    yield "## Operators\n\n| | what | example |\n|---|---|---|"
    yield "\n".join(row(*each) for each in OPERATORS) + "\n"
    yield "## Methods of tensors\n\n| | what | example |\n|---|---|---|"
    methods = [(f"x.{name}", vars(gg.Tensor)[name]) for name in METHODS]
    told = [row(call, first_sentence(what), example(call[2:], "x.")) for call, what in methods]
    yield "\n".join(told) + "\n\nReductions are methods too: `x.sum(axis=-1, keepdims=True)`.\n"
    for title, modules in SECTIONS.items():
        names = [name for name, home in gg._HOMES.items() if home.removeprefix("tracing.") in modules]
        names += ops.PURPOSES.get(title, ())
        yield f"## {title}\n\n| | what | example |\n|---|---|---|"
        functions = [(name, getattr(gg, name)) for name in sorted(names) if not isinstance(getattr(gg, name), type)]
        yield "\n".join(row(f"gg.{name}", first_sentence(what), example(name)) for name, what in functions) + "\n"


def details(chosen: list[Op]) -> Iterator[str]:
    """A paragraph on each op."""
    for op in chosen:
        derivative = "yes" if op.vjp else "zero" if op.no_gradient else "no"
        yield f"### `{signature(op)}`\n"
        yield f"*ggml*: {place(op)} · *derivative*: {derivative}\n"
        yield op.doc + "\n"


def page(*, internal: bool) -> Iterator[str]:
    """The lines of a page."""
    yield INTERNAL if internal else HEAD
    if not internal:
        yield from by_purpose()
        yield "## The ops among them\n\nShapes are in numpy's order. *ggml* is the op that a file holds.\n"
    for title, listed in sections().items():
        chosen = [op for op in listed if (op.name in gg._ops()) != internal]
        if chosen and internal:
            yield f"## {title[0].upper()}{title[1:]}\n"
        yield from details(chosen)


if __name__ == "__main__":
    print("\n".join(page(internal="internal" in sys.argv)), end="")
