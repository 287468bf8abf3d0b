"""No command writes over what it reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ggmlgraph.cli import main
from ggmlgraph.cli.commands import COMMANDS, TOKENIZER

TINY = ["n_embd=16", "n_head=2", "n_layer=1", "n_ff=24"]
MODEL = """
import ggmlgraph as gg
def loss(p, tokens, targets, c):
    return p.cross_entropy(p.linear("output", p.embedding("token_embd", tokens, 256, 8), 256), targets)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of each: a graph, a run, a folder of transformers, a GGUF file, a tokenizer, a model."""
    folder = tmp_path_factory.mktemp("made")
    here = Path.cwd()
    os.chdir(folder)
    try:
        Path("text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
        Path("model.py").write_text(MODEL)
        for line in (
            ["export", "llama", *TINY, "--batch", "2", "--ctx", "8", "-o", "g.bin"],
            ["tokenizer", "train", "text.txt", "--n-vocab", "300", "-o", "t.model"],
            ["train", "g.bin", "--data", "text.txt", "--steps", "1", "--predict", "0", "-o", "run"],
            ["export-hf", "run", "-o", "hf"],
            ["export-gguf", "run", "-o", "m.gguf"],
        ):
            assert main.run(line) == 0, line
    finally:
        os.chdir(here)
    return folder


@pytest.fixture(autouse=True)
def inside(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


def contents() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and path.name != ".lock"}


CASES: list[tuple[list[str], str]] = [
    (["export", "llama", "n_vocab=300", *TINY, "--tokenizer", "t.model"], "t.model"),
    (["export", "model.py"], "model.py"),
    (["export", "model.py:loss"], "model.py"),
    (["convert", "m.gguf"], "m.gguf"),
    (["convert", "hf"], "hf/model.safetensors"),
    (["convert", "hf"], "hf/config.json"),
    (["convert", "hf/model.safetensors"], "hf/model.safetensors"),
    (["convert", "hf", "--tokenizer", "t.model"], "t.model"),
    (["export-gguf", "g.bin"], "g.bin"),
    (["export-gguf", "run"], "run/graph.bin"),
    (["export-gguf", "run"], "run/step_000001/weights.safetensors"),
    (["export-gguf", "run/step_000001"], "run/step_000001/weights.safetensors"),
    (["export-hf", "run"], "run"),
    (["export-hf", "g.bin"], "g.bin"),
    (["tokenizer", "train", "text.txt", "--n-vocab", "300"], "text.txt"),
    (["tokenizer", "train", "model.py", "text.txt", "--n-vocab", "300"], "model.py"),
    (["train", "g.bin", "--data", "text.txt"], "g.bin"),
    (["train", "g.bin", "--data", "text.txt"], "hf"),
]


@pytest.mark.parametrize(("arguments", "output"), CASES, ids=str)
@pytest.mark.parametrize("spelt", [str, os.path.abspath, "./../here/{}".format], ids=["plain", "absolute", "otherwise"])
def test_an_output_that_is_an_input_is_refused_and_stays(
    arguments: list[str], output: str, spelt: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents()
    assert main.run([*arguments, "-o", spelt(output)]) in (1, 2)
    assert capsys.readouterr().err.count("\n") == 1
    assert contents() == before


@pytest.mark.parametrize("target", ["g.bin", "link.bin"])
def test_a_graph_is_not_rewritten_in_place(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("link.bin").symlink_to("g.bin")
    before = contents()
    assert main.run(["rewrite", "g.bin", target, "--dialect", "v1"]) == 2
    assert "would be written over" in capsys.readouterr().err
    assert contents() == before


@pytest.mark.parametrize(
    ("arguments", "output"), [(["export-gguf", "run"], "run/m.gguf"), (["convert", "hf"], "hf/graph.bin")], ids=str
)
def test_an_earlier_output_beside_the_input_may_be_written_again(arguments: list[str], output: str) -> None:
    for _ in range(2):
        assert main.run([*arguments, "-o", output]) == 0


def test_every_command_that_writes_says_so_by_the_name_of_its_argument() -> None:
    for command in [*COMMANDS.values(), TOKENIZER.commands["train"]]:
        written = {param.name for param in command.params if {"-o", "--output"} & {*param.opts}}
        assert written <= {"output"}
