"""What `ggmlgraph` shows to those who import it: the real names, with their signatures and words, and no others."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from rlcompleter import Completer

import numpy as np
import pytest
import typedpage
from places import ROOT

import ggmlgraph as gg
from ggmlgraph.cli.main import run
from ggmlgraph.cli.terminal import shown
from ggmlgraph.models import llama
from ggmlgraph.table import ops
from ggmlgraph.table.op import TABLE
from ggmlgraph.tokenizers.plain import BytesTokenizer

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


def test_every_op_of_ggml_is_called_by_a_name_or_said_otherwise_or_is_no_models() -> None:
    listed = [name for names in ops.PURPOSES.values() for name in names]
    assert len(listed) == len(set(listed)) and {*listed, *ops.WRITTEN} <= set(TABLE)
    assert not set(listed) & set(ops.WRITTEN)
    rest = {name for name, op in TABLE.items() if op.ggml} - {*listed, *ops.WRITTEN, *PUBLIC}
    not_written = {"dup", "cpy", "opt_step_adamw", "soft_cross_entropy_grad"}
    assert {name for name in rest if not name.endswith("_back")} == not_written
    with pytest.raises(AttributeError, match=r"test_surface.py:\d+: .*'permute': a model says a.permute"):
        getattr(gg, "permute")  # noqa: B009


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


def test_mypy_takes_what_is_right_and_names_what_is_wrong(tmp_path: Path) -> None:
    page, lines = typedpage.write(tmp_path)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", str(page)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout.splitlines()
    errors = [line for line in said if ": error: " in line]
    assert [int(line.split(":")[1]) for line in errors] == lines
    for line, wrong in zip(errors, typedpage.WRONG, strict=True):
        assert wrong.mypy in line


def test_completion_offers_the_public_names_that_begin_so() -> None:
    completer = Completer({"gg": gg})
    found = {beginning: [completer.complete(beginning, i) for i in range(99)] for beginning in ("gg.soft", "gg.adam")}
    assert {*found["gg.soft"]} == {None, *(f"gg.{name}(" for name in PUBLIC if name.startswith("soft"))}
    assert {*found["gg.adam"]} == {None}


def test_help_tells_the_methods_of_parameters_with_their_names_in_the_file() -> None:
    for name in ("linear", "embedding", "layer_norm", "rms_norm", "conv"):
        text = pydoc.plain(pydoc.render_doc(getattr(gg.Params, name)))
        assert "`name`.weight" in text, name
    assert "bias: 'bool' = False" in pydoc.plain(pydoc.render_doc(gg.Params.linear))
    assert list(inspect.signature(gg.Trainer).parameters)[:3] == ["graph", "run", "data"]


# ---------------------------------------------------------------- objects

SMALL = llama.Config(n_vocab=256, n_embd=16, n_head=2, n_layer=1, n_ff=24)


def test_a_traced_graph_runs_as_its_file_does(tmp_path: Path) -> None:
    graph = gg.trace(llama.loss, SMALL, batch=2, ctx=8)
    graph.save(tmp_path / "g.bin")
    tokens = np.arange(16, dtype=np.int32).reshape(2, 8)
    with gg.Runtime(graph, threads=1) as here, gg.Runtime(tmp_path / "g.bin", threads=1) as there:
        assert here.forward("logits", tokens=tokens)[0].tobytes() == there.forward("logits", tokens=tokens)[0].tobytes()


def test_objects_say_what_they_are_in_one_line_and_in_a_notebook() -> None:
    graph = gg.trace(llama.loss, SMALL, batch=2, ctx=8)
    graph.model = "<script>"
    with gg.Runtime(graph, threads=1) as runtime:
        for thing in (graph, runtime, runtime.programs.train):
            assert "\n" not in repr(thing)
        assert repr(graph).startswith("<Graph <script>: 63 nodes, 10,416 parameters, batch 2, ctx 8>")
        assert "10,416 parameters, batch 2, ctx 8, inputs tokens" in repr(runtime)
        for notebook in (graph._repr_html_(), runtime._repr_html_()):
            assert "<script>" not in notebook
            assert "10,416 parameters" in notebook
        assert "<td>batch</td><td>2</td>" in notebook
        assert "<td>token_embd.weight</td><td>[256, 16]</td><td>4,096</td>" in notebook
        assert re.search(r"<td>memory, training</td><td>\d\.\d\d MiB</td>", notebook)
    assert repr(runtime).endswith(", closed>")


def test_a_model_that_is_loaded_writes_what_the_command_writes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "g.bin"
    gg.trace(llama.loss, SMALL, batch=1, ctx=16).save(path, tokenizer=BytesTokenizer().to_bytes())
    assert run(["generate", str(path), "-p", "ab", "-n", "9", "--temperature", "0"]) == 0
    told = capfd.readouterr().out
    text = gg.generate(path, "ab", 9, temperature=0)
    assert isinstance(text, str)
    assert told == shown(text) + "\n"
    with gg.load(path) as model:
        assert model.generate(["ab", "ab"], 9, temperature=0) == [text, text]
        assert "tokenizer bytes, 256 ids" in repr(model)
    assert gg.tokenizer(path).encode("ab").tolist() == [97, 98]
