"""Print docs/api.md, the reference of what Python programs call, from the docstrings. Run by `make docs`; a test keeps
the page current. Ops are on a page of their own (ops.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import ggmlgraph as gg

HEAD = """# Python API

Made from the docstrings by `make docs`. `import ggmlgraph as gg`; the ops that ggml has are in [ops.md](ops.md).
"""
SHOWN = {  # of classes with methods for the package alone
    "Graph": ("check_gradient", "save"),
    "Tensor": tuple(name for name in dir(gg.Tensor) if name not in ("bind", "graph", "id")),
}
SECTIONS = {  # by the module where a name is defined, the first that fits
    "Writing a model": ("tracing.tracer", "tracing.params", "tracing.tensor", "tracing.inputs", "graphfile.dim"),
    "Parameters": ("tracing.initializers",),
    "Losses": ("tracing.losses",),
    "Layers and functions": ("tracing",),
    "Running and training": ("execution", "training"),
    "Whole jobs": ("library",),
    "Errors": ("errors",),
}


def page() -> Iterator[str]:
    """The lines of the page."""
    yield HEAD
    names = {name: gg._HOMES[name] for name in sorted(gg._HOMES)}
    told: set[str] = set()
    for title, homes in SECTIONS.items():
        yield f"## {title}\n"
        for name, home in names.items():
            if name not in told and home.startswith(homes):
                told.add(name)
                yield from _entry(name, getattr(gg, name))
    assert told == set(names), set(names) - told


def _entry(name: str, what: Any) -> Iterator[str]:
    yield f"### `{_call(name, what)}`\n"
    yield (inspect.getdoc(what) or "") + "\n"
    if inspect.isclass(what) and not issubclass(what, Exception):
        for attribute, member in inspect.getmembers_static(what):
            plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            plain = plain.fget if isinstance(plain, property) else plain
            own = str(getattr(plain, "__module__", "")).startswith("ggmlgraph.")
            shown = not attribute.startswith("_") and attribute in SHOWN.get(name, (attribute,))
            if shown and inspect.isfunction(plain) and own:
                call = attribute if isinstance(member, property) else _call(attribute, plain)
                yield f"- **`.{call}`** {_one_paragraph(plain)}"
        yield ""


def _call(name: str, what: Any) -> str:
    if inspect.isclass(what) and issubclass(what, Exception):
        return name
    signature = inspect.signature(what)
    kept = [_plain(p) for p in signature.parameters.values() if p.name != "self"]
    return name + str(signature.replace(parameters=kept, return_annotation=inspect.Signature.empty))


def _plain(parameter: inspect.Parameter) -> inspect.Parameter:
    """Without annotation; a default that is no number, text or the like as an ellipsis."""
    default = parameter.default
    simple = default is inspect.Parameter.empty or isinstance(default, int | float | str | tuple | None)
    return parameter.replace(annotation=inspect.Parameter.empty, default=default if simple else ...)


def _one_paragraph(what: Any) -> str:
    return " ".join((inspect.getdoc(what) or "").split())


if __name__ == "__main__":
    print("\n".join(page()), end="")
