"""Runs on texts of every kind, on stores, mixed, and validated on another text."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggmlgraph.cli import main
from ggmlgraph.data.others import old_digest
from ggmlgraph.data.sources import sources_of
from ggmlgraph.tokenizers.plain import BytesTokenizer

TEXT = "the quick brown fox jumps over the lazy dog\n" * 40
SHORT = ["--steps", "4", "--predict", "0", "--threads", "1", "--save-every", "2", "--eval-every", "2"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(TEXT)
    Path("b.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in TEXT.upper().splitlines()))
    sizes = ["n_embd=16", "n_head=2", "n_layer=1", "n_ff=24", "--batch", "2", "--ctx", "8"]
    assert main.run(["export", "llama", *sizes, "-o", "g.bin"]) == 0


def train(run: str, *words: str, status: int = 0) -> list[dict[str, Any]]:
    assert main.run(["train", "g.bin", "-o", run, *SHORT, *words]) == status
    path = Path(run) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in lines]


def test_a_text_and_its_store_are_the_same_run() -> None:
    assert main.run(["data", "prepare", "a.txt", "-o", "s"]) == 0
    assert losses(train("one", "--data", "a.txt")) == losses(train("two", "--data", "s"))


def test_bits_per_byte_of_bytes_are_the_nats_in_bits() -> None:
    line = train("run", "--data", "a.txt")[-1]
    assert line["val_bits_per_byte"] == pytest.approx(line["val_loss"] / math.log(2))


def test_validation_may_be_another_text() -> None:
    ours, theirs = (
        train(run, "--data", "a.txt", "--val-data", data) for run, data in (("x", "a.txt"), ("y", "b.jsonl"))
    )
    assert losses(ours) == losses(theirs)
    assert ours[-1]["val_loss"] != theirs[-1]["val_loss"]


def test_a_mixture_is_trained_and_resumed_as_if_never_stopped() -> None:
    mix = ["--mix", "lower=0.3:a.txt", "--mix", "upper=0.7:b.jsonl"]
    whole = train("whole", *mix)
    train("parts", *mix, "--steps", "2", "--schedule", "constant", "--warmup", "0")
    again = train("parts", "--resume", "auto", "--steps", "4")
    straight = train("straight", *mix, "--schedule", "constant", "--warmup", "0")
    assert losses(again) == losses(straight)
    assert len(whole) == 4


def test_what_makes_no_mixture_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, reason in (
        (["--mix", "a.txt"], "expected NAME=WEIGHT:SOURCE"),
        (["--mix", "a:a.txt"], "give its weight"),
        (["--mix", "a=x:a.txt"], "the weight 'x' is no number above 0"),
        (["--mix", "x:a.txt", "--proportions", "llama"], "--proportions has commoncrawl, c4"),
        (["--mix", "a=1:a.txt", "--mix", "a=1:b.jsonl"], "two parts of the name a"),
        (["--mix", "a=1:a.txt", "--data", "a.txt"], "--mix names its texts itself"),
    ):
        train("bad", *words, status=2)
        assert reason in capsys.readouterr().err
        shutil.rmtree("bad")


def test_a_run_with_tokens_of_the_first_format_goes_on() -> None:
    whole = train("whole", "--data", "a.txt", "--schedule", "constant", "--warmup", "0")
    train("old", "--data", "a.txt", "--steps", "2", "--schedule", "constant", "--warmup", "0")
    shutil.rmtree("old/tokens")
    digest = old_digest(sources_of(["a.txt"]), BytesTokenizer())
    header = {"dtype": "<u2", "n_tokens": len(TEXT), "n_vocab": 256, "max_id": 122, "digest": digest}
    start = (b"ggtokens 1\n" + json.dumps(header).encode()).ljust(511) + b"\n"
    Path("old/tokens").mkdir()
    Path(f"old/tokens/{digest}.tokens").write_bytes(
        start + np.frombuffer(TEXT.encode(), np.uint8).astype("<u2").tobytes()
    )
    _say_digest(Path("old/step_000002/state.json"), digest)
    assert losses(train("old", "--resume", "auto", "--steps", "4")) == losses(whole)
    shutil.rmtree("old/step_000004")
    assert losses(train("old", "--resume", "auto", "--data", "a.txt", "--steps", "4")) == losses(whole)


def _say_digest(path: Path, digest: str) -> None:
    """As if the checkpoint were of such tokens."""
    import hashlib

    manifest = json.loads(path.read_bytes())["manifest"]
    manifest["state"]["origin"]["data"] = digest
    text = json.dumps(manifest)
    path.write_text(f'{{"manifest": {text}, "sha256": "{hashlib.sha256(text.encode()).hexdigest()}"}}')
