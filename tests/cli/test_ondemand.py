"""Commands that want a graph take a checkpoint of another program, which is converted once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from places import REAL

from ggmlgraph.cli import main

STORIES = REAL / "stories260K"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face folder with its tokenizer; the cache is a folder of the test's."""
    if not STORIES.exists():
        pytest.skip(f"{STORIES} is not there")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "hf").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(STORIES / "hf" / name, tmp_path / "hf" / name)
    shutil.copyfile(STORIES / "tok512.model", tmp_path / "hf" / "tokenizer.model")
    return tmp_path / "hf"


def generated(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    arguments = ["generate", str(path), "-p", "Once upon", "-n", "12", "--temperature", "0", "--threads", "1"]
    assert main.run(arguments) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_a_checkpoint_generates_what_its_converted_graph_does(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["convert", str(folder), "-o", str(folder.parent / "g.bin")]) == 0
    capsys.readouterr()
    assert generated(folder, capsys)[0] == generated(folder.parent / "g.bin", capsys)[0]
    shutil.copyfile(STORIES / "stories260K-f32.gguf", folder.parent / "m.gguf")
    assert generated(folder.parent / "m.gguf", capsys)[0] == generated(folder, capsys)[0]


def test_it_is_converted_once_and_again_when_it_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = folder.parent / "cache" / "ggmlgraph"
    assert "kept in" in generated(folder, capsys)[1]
    first = list(cache.iterdir())
    assert generated(folder, capsys)[1] == ""
    (folder / "generation_config.json").write_text("{}")
    assert "kept in" in generated(folder, capsys)[1]
    assert len(list(cache.iterdir())) == 1
    assert list(cache.iterdir()) != first


@pytest.mark.parametrize("command", [["inspect"], ["eval", "--text"], ["chat"]])
def test_every_command_that_reads_a_model_takes_a_checkpoint(
    command: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = folder.parent / "t.txt"
    text.write_text("Once upon a time, there was a little girl who lived in a small house. " * 20)
    arguments = [command[0], str(folder), *command[1:], *([str(text), "--ctx", "64"] if command[0] == "eval" else [])]
    status = main.run(arguments)
    captured = capsys.readouterr()
    assert "converted" in captured.err
    assert (status, "no chat template" in captured.err) == ((1, True) if command[0] == "chat" else (0, False))


def test_an_adapter_is_told_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert main.run(["generate", str(tmp_path)]) == 1
    assert "is a LoRA adapter" in capsys.readouterr().err


def test_a_checkpoint_whose_tokenizer_cannot_be_kept_is_refused_before_anything_is_made(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "added_tokens.json").write_text('{"<a>": 600}')
    assert main.run(["generate", str(folder), "-p", "Once"]) == 1
    assert "added_tokens.json: the added token '<a>' is 600" in capsys.readouterr().err
    assert not list((folder.parent / "cache").rglob("*.bin"))
