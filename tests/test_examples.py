"""The examples of docs/examples run, learn, and can be exported from the command line."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import FOLDER, NAMES, load

import ggmlgraph as gg
from ggmlgraph.cli.main import run


def test_each_example_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check_each: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)

    def check(name: str) -> None:
        losses = np.array(load(name).main(steps=250))
        if name == "adversarial":  # who learns makes it harder for the other: the points have to come near
            x, y = map(float, re.findall(r"around \((.*), (.*)\)", capsys.readouterr().out)[0])
            assert abs(x - 1) < 0.7 and abs(y) < 0.7
        else:
            assert losses[-10:].mean() < 0.75 * losses[:3].mean()

    check_each(NAMES, check)


def test_each_example_is_exported_by_a_command(tmp_path: Path, check_each: Any) -> None:
    def check(name: str) -> None:
        functions = ("judge_loss", "maker_loss") if name == "adversarial" else ("loss",)
        for function in functions:
            path = tmp_path / f"{name}.bin"
            assert run(["export", f"{FOLDER}/{name}.py:{function}", "--batch", "2", "-o", str(path)]) == 0
            with gg.Runtime(path, batch=3) as rt:
                assert rt.metadata.fixed is None
                assert rt.sizes["batch"] == 3

    check_each(NAMES, check)


def test_the_program_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    page = (FOLDER.parent / "inputs.md").read_text(encoding="utf-8")
    program = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    Path("page.py").write_text("\n".join(program), encoding="utf-8")
    runpy.run_path("page.py", run_name="page")
    assert capsys.readouterr().out.startswith("['image', 'label'] 2.30")
