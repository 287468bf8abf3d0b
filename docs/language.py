"""Print docs/language.md: what numpy and torch say, what is said here, and the ops of ggml that it writes.

The rows are the cases that the tests compute (tests/spellings.py): with numpy in float64, forward and gradient, by real
ggml, or beside torch. Run by `make docs`; a test keeps the page current.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from spellings import LAYERS, SPELLINGS, Layer, Spelling, ops_written

HEAD = """# As numpy and torch say it

What a model may be written with, beside numpy's way, or torch's (`F` is torch.nn.functional), and the ops of ggml's
that stand in the file. `x`, `y`, `a` and so on are tensors, `ids` int32. Made by `make docs` from the cases of the
tests: each gives the same numbers as its neighbour, beside numpy's the same gradients too, and real ggml computes its
file. Of calls that differ in numbers alone one is shown.
"""
MOST = 16  # ops that are listed of a call


def page() -> Iterator[str]:
    """The lines of the page."""
    yield HEAD
    seen: set[str] = set()
    for cases, other in ((SPELLINGS, "numpy"), (LAYERS, "torch")):
        for section, group in groupby(cases, key=lambda case: case.section):
            rows = [row for case in group if (row := _row(case, seen))]
            if rows:
                yield f"## {section if other == 'numpy' else f'{section}, as torch'}\n"
                yield f"| {other} | here | in the file |\n|---|---|---|"
                yield "\n".join(rows) + "\n"


def _row(case: Spelling | Layer, seen: set[str]) -> str:
    """A line of a table; empty for a call that is there with other numbers."""
    form = re.sub(r"(?<!\w)-?\d+(\.\d+)?", "#", case.ours)
    if form in seen:
        return ""
    seen.add(form)
    theirs = case.numpys if isinstance(case, Spelling) else case.torchs
    written = [f"{name} x {n}" if n > 1 else name for name, n in _runs(ops_written(case.ours, case.shapes))]
    shown = written if len(written) <= MOST else [*written[:MOST], "..."]
    return f"| {_code(theirs)} | {_code(case.ours)} | {', '.join(shown)} |"


def _runs(names: list[str]) -> Iterator[tuple[str, int]]:
    for name, group in groupby(names):
        yield name, len(list(group))


def _code(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


if __name__ == "__main__":
    print("\n".join(page()), end="")
