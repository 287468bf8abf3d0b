"""Print ggmlgraph/__init__.pyi, what type checkers know of the package: the real names, each from where it is defined.

Run by `make docs`; a test keeps the file current.
"""

from __future__ import annotations

from collections.abc import Iterator

import ggmlgraph


def stub() -> Iterator[str]:
    """The lines of the file."""
    yield "# Made by docs/stub.py: `make docs`."
    homes = ggmlgraph._HOMES
    names = {name: homes.get(name, "table.ops") for name in dir(ggmlgraph) if not name.startswith("_")}
    for name, home in sorted(names.items(), key=lambda item: (item[1], not item[0].isupper(), item[0])):  # as ruff does
        yield f"from ggmlgraph.{home} import {name} as {name}"
    yield ""
    yield "__version__: str"


if __name__ == "__main__":
    print("\n".join(stub()))
