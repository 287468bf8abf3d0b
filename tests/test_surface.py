"""What `ggmlgraph` shows to those who import it: the real names, with their signatures and words, and no others."""

from __future__ import annotations

import inspect
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

import ggmlgraph as gg
from ggmlgraph.table.op import TABLE

PUBLIC = [name for name in dir(gg) if not name.startswith("_")]


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    for name in PUBLIC:
        found = getattr(gg, name)
        assert found.__name__ == name
        assert inspect.getdoc(found), name


def test_ops_of_ggml_are_functions_with_signatures_and_help() -> None:
    for name in set(PUBLIC) & set(TABLE):
        assert inspect.isfunction(getattr(gg, name)), name
    assert list(inspect.signature(gg.rms_norm).parameters) == ["a", "eps"]
    text = pydoc.plain(pydoc.render_doc(gg.rms_norm))
    assert "rms_norm(a: 'Tensor', eps: 'float') -> 'Tensor'" in text
    assert "Zhang & Sennrich 2019" in text


def test_ops_that_ggml_has_not_are_not_public_and_say_so() -> None:
    internal = [name for name, op in TABLE.items() if op.ggml is None and name not in PUBLIC]
    assert "adamw" in internal
    for name in internal:
        with pytest.raises(AttributeError, match=f"'{name}': it is an op of the runtime's own"):
            getattr(gg, name)


def test_a_name_that_is_wrong_is_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match="no attribute 'rms_nrm': did you mean 'rms_norm'"):
        getattr(gg, "rms_nrm")  # noqa: B009


def test_what_a_star_imports_is_what_dir_lists() -> None:
    names: dict[str, object] = {}
    exec("from ggmlgraph import *", names)
    assert set(names) - {"__builtins__"} == set(PUBLIC)


def test_type_checkers_are_told_the_names_there_are() -> None:
    made = subprocess.run([sys.executable, ROOT / "docs/stub.py"], capture_output=True, text=True, check=True).stdout
    assert made == (ROOT / "ggmlgraph/__init__.pyi").read_text(), "run `make docs`"


RIGHT = """
import ggmlgraph as gg

def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: object) -> gg.Tensor:
    x = p.embedding("e", tokens, 256, 8)
    x = gg.silu(gg.rms_norm(x, 1e-5)) * 2.0
    return p.cross_entropy(p.linear("o", x, 256), targets)

graph: gg.Graph = gg.trace(loss, None)
try:
    graph.save("g.bin")
except gg.ShapeError as error:
    print(error)
"""
WRONG = {
    "gg.nosuch": 'Module has no attribute "nosuch"',
    "gg.adamw": 'Module has no attribute "adamw"',
    "gg.rms_norm()": 'Missing positional arguments "a", "eps" in call to "rms_norm"',
    "gg.silu(3)": 'Argument 1 to "silu" has incompatible type "int"; expected "Tensor"',
    "gg.trace(loss, None, batch='x')": 'Argument "batch" to "trace" has incompatible type "str"; expected "int"',
}


def test_mypy_takes_what_is_right_and_names_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.py"
    page.write_text(RIGHT + "".join(f"{line}\n" for line in WRONG))
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", str(page)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout.splitlines()
    errors = [line for line in said if ": error: " in line]
    first = RIGHT.count("\n") + 1
    assert [int(line.split(":")[1]) for line in errors] == list(range(first, first + len(WRONG)))
    for line, wanted in zip(errors, WRONG.values(), strict=True):
        assert wanted in line
