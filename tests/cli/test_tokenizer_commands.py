"""`ggmlgraph tokenizer`: ids of texts, texts of ids, and how a tokenizer spells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ggmlgraph.cli import main
from ggmlgraph.interchange.tokenizer import load_tokenizer

TEXT = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 30


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ja.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines()))


def run(*words: str) -> None:
    assert main.run(["tokenizer", *words]) == 0


def test_ids_of_a_text_are_its_text_again(capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "ja.jsonl", "--n-vocab", "310", "--special", "<|end|>", "-o", "x.model")
    Path("a.txt").write_text("猫は鯨\U0001f600")
    capsys.readouterr()
    run("encode", "a.txt", "--tokenizer", "x.model")
    ids = capsys.readouterr().out.split()
    assert ids == [str(i) for i in load_tokenizer(Path("x.model")).encode("猫は鯨\U0001f600")]
    run("decode", *ids, "--tokenizer", "x.model")
    assert capsys.readouterr().out == "猫は鯨\U0001f600\n"


def test_special_tokens_are_control_tokens_that_no_text_has() -> None:
    run("train", "ja.jsonl", "--n-vocab", "310", "--special", "<|end|>", "-o", "x.model")
    tokenizer = load_tokenizer(Path("x.model"))
    assert tokenizer.token_named("<|end|>") not in (None, *tokenizer.encode("<|end|>").tolist())


def test_bytes_spell_what_has_no_id_unless_all_characters_have(capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "ja.jsonl", "--n-vocab", "310", "-o", "bytes.model")
    run("train", "ja.jsonl", "--n-vocab", "60", "--character-coverage", "1", "-o", "all.model")
    Path("a.txt").write_text("鯨猫")
    found: dict[str, Any] = {}
    for name in ("bytes", "all"):
        capsys.readouterr()
        run("stats", "a.txt", "--tokenizer", f"{name}.model", "--json")
        found[name] = json.loads(capsys.readouterr().out)
    assert found["bytes"]["unknown"] == 0 < found["bytes"]["bytes"]
    assert found["all"]["bytes"] == 0 < found["all"]["unknown"]
    assert (found["all"]["characters"], found["all"]["bytes_of_text"]) == (2, 6)


def test_what_is_no_id_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "ja.jsonl", "--n-vocab", "310", "-o", "x.model")
    for word in ("x", "310", "-1", "9" * 30):
        assert main.run(["tokenizer", "decode", "--tokenizer", "x.model", "--", word]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
