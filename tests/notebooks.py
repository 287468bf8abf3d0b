"""Runs the code of a notebook, cell by cell, as Jupyter would: what is printed, and what the last expression shows.

Used by test_notebook.py. `python tests/notebooks.py docs/tutorial.ipynb` puts the outputs into the file.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

Output = dict[str, Any]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def run(notebook: Any, folder: Path) -> list[list[Output]]:
    """The outputs of each code cell, in nbformat 4; files are written into the folder."""
    names: dict[str, Any] = {"__name__": "__main__"}
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    with contextlib.chdir(folder):
        return [list(_run(source, number, names)) for number, source in enumerate(sources, 1)]


def _run(source: str, number: int, names: dict[str, Any]) -> list[Output]:
    nodes = ast.parse(source).body
    last = nodes.pop() if isinstance(nodes[-1], ast.Expr) else None
    outputs: list[Output] = []
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(nodes, []), f"cell {number}", "exec"), names)
        shown = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names) if last else None
    if printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": _lines(printed.getvalue())})
    if shown is not None:
        data = {"text/plain": _lines(repr(shown))}
        if hasattr(shown, "_repr_html_"):
            data["text/html"] = _lines(shown._repr_html_())
        outputs.append({"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"})
    return outputs


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main(path: Path) -> None:
    notebook = read(path)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    with tempfile.TemporaryDirectory() as folder:
        for number, (cell, outputs) in enumerate(zip(cells, run(notebook, Path(folder)), strict=True), 1):
            cell["outputs"], cell["execution_count"] = outputs, number
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
