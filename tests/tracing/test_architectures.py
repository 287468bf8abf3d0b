"""Model files under any name, and configs from anywhere: each fault is one line, at the line of the model."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from ggmlgraph.cli.main import run
from ggmlgraph.errors import GGError, ShapeError, UsageError
from ggmlgraph.table.op import TABLE
from ggmlgraph.tracing import architectures

MODEL = """
from dataclasses import dataclass
import ggmlgraph as gg

@dataclass(frozen=True)
class Config:
    n_vocab: int = 256
    n_embd: int = 8

def loss(p, tokens, targets, c: Config):
    x = p.embedding("token_embd", tokens, c.n_vocab, c.n_embd)
    return p.cross_entropy(p.linear("output", x, c.n_vocab), targets)
"""


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    "name",
    ["random", "secrets", "numpy", "tokenizers", "json", "ggmlgraph", "click", "models", "a b", "ラマ", "1", "a.b"],
)
def test_a_model_file_may_be_called_like_any_module(name: str) -> None:
    Path(f"{name}.py").write_text(MODEL)
    before = sys.modules.get(name)
    assert run(["export", f"{name}.py:loss", "-o", "g.bin"]) == 0
    assert sys.modules.get(name) is before
    assert architectures.load(f"{name}.py").loss.__module__.endswith(f".{name}")


def test_modules_beside_a_model_can_be_imported_but_take_no_librarys_place() -> None:
    Path("beside_it.py").write_text("WIDTH = 8")
    Path("numpy.py").write_text("raise SystemExit('the wrong numpy')")
    Path("secrets.py").write_text("raise SystemExit('the wrong secrets')")
    Path("m.py").write_text(MODEL.replace("n_embd: int = 8", "n_embd: int = WIDTH").replace(
        "import ggmlgraph", "import numpy, secrets\nfrom beside_it import WIDTH\nimport ggmlgraph"))  # fmt: skip
    assert run(["export", "m.py", "-o", "g.bin"]) == 0


def test_modules_beside_two_models_may_be_called_alike() -> None:
    for folder, width in (("one", 8), ("two", 24)):
        Path(folder).mkdir()
        Path(folder, "sizes_of_it.py").write_text(f"WIDTH = {width}")
        Path(folder, "m.py").write_text(MODEL.replace("n_embd: int = 8", "n_embd: int = WIDTH").replace(
            "import ggmlgraph", "from sizes_of_it import WIDTH\nimport ggmlgraph"))  # fmt: skip
    found = [architectures.load(f"{folder}/m.py") for folder in ("one", "two")]
    assert [architectures.config(model, {}).n_embd for model in found] == [8, 24]
    assert [architectures.run(model, _imported_late) for model in (*found, found[0])] == [8, 24, 8]


def _imported_late() -> int:
    return int(importlib.import_module("sizes_of_it").WIDTH)


WRONG_FILES = {
    "exits": ("import sys\nsys.exit(3)", "m.py:2: SystemExit: 3"),
    "fails": ("\n1 / 0", "m.py:2: ZeroDivisionError"),
    "no syntax": ("def (:", "m.py:1:"),
    "no function": ("loss = 3", "m.py has no function loss"),
    "no tokenizer": (MODEL + "TOKENIZER = 3", "TOKENIZER is a int, not a str"),
    "no corpus": (MODEL + "CORPUS = b'x'", "CORPUS is a bytes, not a str"),
    "no presets": (MODEL + "PRESETS = []", "PRESETS is a list, not a Mapping"),
    "fields of nothing": (MODEL.replace("n_embd: int = 8", "n_embd: 'Nothing' = 8"), "NameError"),
    "a field without value": (MODEL.replace(" = 256", "").replace(" = 8", ""), "needs n_embd: give n_embd=VALUE"),
    "too few parameters": ("def loss(p): return p", "takes no input"),
    "an annotation that fails": (MODEL.replace("c: Config", "c: 1/0"), "ZeroDivisionError"),
    "no number": (MODEL + "def loss(p, a, b, c): return 3", "must return a scalar tensor"),
    "for ever deeper": ("def loss(p, a, b, c): return loss(p, a, b, c)", "RecursionError"),
    "an initialiser that is a number": (MODEL.replace("c.n_embd)", "c.n_embd, init=0.5)"), "m.py:11: parameter"),
    "an initialiser that is a text": (MODEL.replace("c.n_embd)", "c.n_embd, init='zeros')"), "m.py:11: parameter"),
    "an initialiser not called": (MODEL.replace("c.n_embd)", "c.n_embd, init=gg.normal)"), "m.py:11: parameter"),
    "an initialiser that is 0": (MODEL.replace("c.n_embd)", "c.n_embd, init=0)"), "m.py:11: parameter"),
    "a size that is no whole number": (MODEL.replace("c.n_embd)", "8.5)"), "m.py:11: embedding: n_embd is 8.5"),
    "a size below 1": (MODEL.replace("c.n_embd)", "0)"), "m.py:11: token_embd.weight"),
    "a name that is a control character": (MODEL.replace('"token_embd"', '"\\x1b[31m"'), "m.py:11: '\\x1b[31m"),
    "a name that is too long": (MODEL.replace('"token_embd"', '"t" * 64'), "m.py:11: the name ttt"),
    "a reserved name": (MODEL.replace('p.embedding("token_embd"', '(p / "ggmlgraph").embedding("x"'), "may be called"),
    "safetensors' notes": (MODEL.replace("return p", 'return p("__metadata__", 1) * p'), "m.py:12: no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_FILES)
def test_a_model_file_that_is_wrong_is_one_line(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, reason = WRONG_FILES[what]
    Path("m.py").write_text(content)
    assert run(["export", "m.py", "-o", "g.bin"]) in (1, 2)
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1
    assert "fault of ggmlgraph" not in said
    assert not Path("g.bin").exists()


@pytest.mark.parametrize("op", [op.name for op in TABLE.values() if op.ggml is None])
def test_an_op_that_the_runtime_alone_has_is_one_line_at_the_models(
    op: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row = TABLE[op]
    given = [*["x"] * len(row.sources), *(f"{p.name}=1" for p in row.params), *(["shape=x.shape"] if row.sized else [])]
    Path("m.py").write_text(MODEL.replace("    return", f"    gg.{op}({', '.join(given)})\n    return"))
    assert run(["export", "m.py", "-o", "g.bin"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("ggmlgraph: error: m.py:12: ")
    assert op in said
    assert said.count("\n") == 1


# ---------------------------------------------------------------- configs


LLAMA = {"n_vocab": 8, "n_embd": 16, "n_head": 2, "n_layer": 1}
NO_CONFIGS: list[dict[str, Any]] = [
    {name: value}
    for name in ("n_layer", "n_head", "n_embd", "n_vocab", "n_ff", "head_dim")
    for value in (-1, 10**12, 1 << 64, 1.5, "x", None, True, [], {}, float("nan"))
] + [
    {"n_layer": 0}, {"n_head": 0}, {"n_embd": 0}, {"n_vocab": 0}, {"norm_eps": "x"}, {"norm_eps": float("inf")},
    {"norm_eps": None}, {"tied": 1}, {"tied": "yes"}, {"rope_scaling": 3}, {"rope_scaling": None}, {"nothing": 1},
    {"": 1}, {"n_head": 3}, {"n_head": 8, "n_head_kv": 3},
]  # fmt: skip


@pytest.mark.parametrize("values", NO_CONFIGS, ids=str)
def test_a_config_of_any_values_is_one_or_one_error(values: dict[str, Any]) -> None:
    with pytest.raises((UsageError, ShapeError)) as raised:
        architectures.config(architectures.load("llama"), LLAMA | values)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("name", architectures.built_in())
def test_the_configs_that_models_come_with_are_configs(name: str) -> None:
    found = architectures.load(name)
    assert architectures.config(found, {}) is not None
    for preset in found.presets.values():
        values = {field: getattr(preset, field) for field in architectures.field_types(found)}
        assert architectures.config(found, values) == preset


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_a_width_that_heads_do_not_divide_names_both(name: str) -> None:
    with pytest.raises(GGError, match=f"{name}.py: n_embd 30 is not a multiple of n_head 4"):
        architectures.config(architectures.load(name), {"n_embd": 30, "n_head": 4})


def test_a_misspelt_field_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    Path("m.py").write_text(MODEL.replace("c.n_embd", "c.n_emb"))
    for words, reason in (
        (["llama", "n_layre=1"], "llama has no field 'n_layre'; its fields are: n_vocab, "),
        (["llama", "n_layre=1"], "; did you mean n_layer?"),
        (["m.py"], "m.py:11: Config has no field 'n_emb'; its fields are: n_vocab, n_embd; did you mean n_embd?"),
    ):
        assert run(["export", *words, "-o", "g.bin"]) in (1, 2)
        assert reason in capsys.readouterr().err
