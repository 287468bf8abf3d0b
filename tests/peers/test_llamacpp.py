"""Exported GGUF files in llama.cpp: its logits, its token ids, its greedy text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import REAL
from randommodels import MODELS, graph_of

from ggmlgraph.cli import main
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.generation import evaluate
from ggmlgraph.generation.generate import Generator, Sampling, open_model
from ggmlgraph.interchange import checkpoints, convert, exportgguf, trained
from ggmlgraph.interchange.tokenizer import load_tokenizer
from ggmlgraph.tokenizers import tohf
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tokenizers.huggingface import HuggingFaceTokenizer
from ggmlgraph.tokenizers.plain import BytesTokenizer

pytest.importorskip("llama_cpp", reason="for want of llama-cpp-python")

GELU_TABLE = 2e-2  # llama.cpp computes GELU by a table of half-precision numbers
WITH_GELU = ("gemma", "phi2", "gpt2", "gpt_neox")
N_IDS = 48


def llamacpp(model: Path, **request: Any) -> dict[str, Any]:
    script = Path(__file__).with_name("llamacpp.py")
    done = subprocess.run(
        [sys.executable, str(script), str(model)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_every_architecture_are_llamacpps(name: str, tmp_path: Path) -> None:
    architecture, fields = MODELS[name]
    graph = graph_of(architecture, tmp_path / "g.bin", BytesTokenizer(), **fields)
    exportgguf.export(trained.find(graph, 64), tmp_path / "m.gguf", "f32")
    ids = np.random.default_rng(1).integers(0, 256, N_IDS).astype(np.int32)
    answer = llamacpp(tmp_path / "m.gguf", ids=ids.tolist(), logits=str(tmp_path / "l.npy"))
    with Runtime(graph, threads=1, batch=1, ctx=N_IDS) as runtime:
        ours = runtime.forward("logits", tokens=ids[None])[0].reshape(N_IDS, -1)
    theirs = np.load(tmp_path / "l.npy")
    assert answer["n_vocab"] == 256
    assert np.abs(ours - theirs).max() < (GELU_TABLE if architecture in WITH_GELU else 1e-3)
    assert np.abs(ours).max() > 1


# ---------------------------------------------------------------- real checkpoints


def shared(name: str) -> Path:
    if not (REAL / name).exists():
        pytest.skip(f"for want of {REAL / name}")
    return REAL / name


def converted(name: str, out: Path) -> Path:
    source = checkpoints.find(shared(name))
    convert.convert(source, out, batch=1, ctx=128, tokenizer=source.tokenizer)
    return out


@pytest.mark.parametrize(
    ("form", "tolerance"),
    [
        ("stories260K/hf", 1e-3),
        ("stories260K/stories260K.bin", 1e-3),
        ("gptneox-shakespeare", GELU_TABLE),
        ("gptneox-shakespeare/gptneox-shakespeare-f32.gguf", GELU_TABLE),
    ],
)
def test_logits_of_trained_models_are_those_of_transformers(form: str, tolerance: float, tmp_path: Path) -> None:
    reference = np.load(shared(form.split("/")[0]) / "ref_logits_transformers.npz")
    exportgguf.export(trained.find(converted(form, tmp_path / "g.bin")), tmp_path / "m.gguf", "f32")
    llamacpp(tmp_path / "m.gguf", ids=reference["ids"].tolist(), logits=str(tmp_path / "l.npy"))
    logits = np.load(tmp_path / "l.npy")
    assert np.abs(logits - reference["logits"]).max() < tolerance
    np.testing.assert_array_equal(logits.argmax(1), reference["logits"].argmax(1))


def test_smaller_types_load_and_cost_little(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained.find(converted("stories260K/stories260K.bin", tmp_path / "g.bin"))
    assert model.tokenizer is not None
    text = (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw "
    )
    ids = [
        1,
        *model.tokenizer.encode(text + "a big, red ball. She wanted to play with it, but it was too high.").tolist(),
    ]
    perplexity = {}
    for kind in exportgguf.TYPES:
        exportgguf.export(model, tmp_path / f"{kind}.gguf", kind)
        answer = llamacpp(tmp_path / f"{kind}.gguf", ids=ids, logits=str(tmp_path / "l.npy"))
        perplexity[kind] = answer["perplexity"]
    with capsys.disabled():
        print("\nstories260K, perplexity:", ", ".join(f"{kind} {value:.4f}" for kind, value in perplexity.items()))
    for kind, value in perplexity.items():
        assert value < perplexity["f32"] * (1.5 if kind.startswith("q4") else 1.05)


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "f16"])
def test_a_frozen_model_is_to_llamacpp_what_it_came_from(kind: str, tmp_path: Path) -> None:
    exportgguf.export(trained.find(converted("stories260K/hf", tmp_path / "g.bin")), tmp_path / "m.gguf", kind)
    source = checkpoints.find(tmp_path / "m.gguf")
    convert.convert(source, tmp_path / "q.bin", batch=1, ctx=64, tokenizer=source.tokenizer, dtype=None)
    exportgguf.export(trained.find(tmp_path / "q.bin"), tmp_path / "again.gguf")
    for name in ("m", "again"):
        llamacpp(tmp_path / f"{name}.gguf", ids=list(range(1, 40)), logits=str(tmp_path / f"{name}.npy"))
    np.testing.assert_array_equal(np.load(tmp_path / "m.npy"), np.load(tmp_path / "again.npy"))


def test_perplexity_of_a_text_is_that_of_llamacpps_logits_by_its_rule(tmp_path: Path) -> None:
    """tools/perplexity: windows side by side, begin-of-text first in each, scored from token n_ctx / 2 on."""
    ctx, text = 96, shared("corpora/botchan_en.txt").read_text()[3000:3700]
    graph = converted("stories260K/stories260K.bin", tmp_path / "g.bin")
    exportgguf.export(trained.find(graph), tmp_path / "m.gguf", "f32")
    runtime, tokenizer = open_model(graph, threads=1, ctx=ctx)
    with runtime:
        (tmp_path / "text.txt").write_text(text)
        *_, ours = evaluate.perplexity(runtime, tokenizer, tmp_path / "text.txt")
    ids = np.array([tokenizer.bos_id, *tokenizer.encode(text)])
    losses = []
    for begin in range(0, len(ids) - ctx + 1, ctx):
        window = ids[begin : begin + ctx].copy()
        window[0] = tokenizer.bos_id
        llamacpp(tmp_path / "m.gguf", ids=window.tolist(), logits=str(tmp_path / "l.npy"))
        scored = np.load(tmp_path / "l.npy").astype(np.float64)[ctx // 2 : -1]
        likelihood = scored[np.arange(len(scored)), window[ctx // 2 + 1 :]] - np.logaddexp.reduce(scored, 1)
        losses += (-likelihood).tolist()
    assert len(losses) == ours.n_tokens > 90
    assert ours.value == pytest.approx(np.exp(np.mean(losses)), rel=1e-3)


# ---------------------------------------------------------------- tokenizers

VOCABULARIES = [
    "llama-spm/tokenizer.model",
    "llama-spm/ggml-vocab-llama-spm.gguf",
    "stories260K/tok512.bin",
    "sentencepiece-ja/test_ja_model.model",
    "sentencepiece-ja/test_model.model",
    "gptneox-tok/ggml-vocab-gpt-neox.gguf",
    "gptneox-shakespeare/tokenizer.json",
]


def lines() -> list[str]:
    """English and Japanese, and what is awkward."""
    english = shared("corpora/botchan_en.txt").read_text().splitlines()[:300]
    japanese = shared("corpora/wagahaiwa_nekodearu.txt").read_text().splitlines()[:300]
    return [*english, *japanese, "  two  spaces ", "a\tb", "I'LL don't 1234567", "\U0001f600 \ufb01 caf\u00e9 \u2460"]


def same_ids(tokenizer: Tokenizer, folder: Path) -> list[bool]:
    """For each line whether llama.cpp gives it our ids."""
    graph = graph_of("llama", folder / "g.bin", tokenizer, n_vocab=tokenizer.n_vocab + 5, n_layer=1)
    exportgguf.export(trained.find(graph), folder / "m.gguf", "f16")
    answer = llamacpp(folder / "m.gguf", lines=lines())
    assert answer["n_vocab"] == tokenizer.n_vocab + 5
    return [tokenizer.encode(line).tolist() == ids for line, ids in zip(lines(), answer["lines"], strict=True)]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_token_ids_are_llamacpps_line_for_line(name: str, tmp_path: Path) -> None:
    if name.endswith(".json") or "neox" in name:
        pytest.importorskip("tokenizers", reason="for want of tokenizers")
    assert all(same_ids(load_tokenizer(shared(name)), tmp_path))


@pytest.mark.parametrize("name", ["llama-spm/tokenizer.model", "sentencepiece-ja/test_ja_model.model"])
def test_token_ids_of_sentencepiece_spelt_as_tokenizer_json_are_too(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="for want of tokenizers")
    written, _ = tohf.files(load_tokenizer(shared(name)))
    assert all(same_ids(HuggingFaceTokenizer(written["tokenizer.json"]), tmp_path))


def test_token_ids_of_bytes_are_too(tmp_path: Path) -> None:
    assert all(same_ids(BytesTokenizer(), tmp_path))


def test_unigram_with_byte_fallback_differs_only_where_that_was_told(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(shared("llm-jp-tok/code10K_en20K_ja30K.ver2.2.model"))
    same = same_ids(tokenizer, tmp_path)
    falls_back = [any(2 < t < 259 and len(tokenizer.piece(t)) == 1 for t in tokenizer.encode(line)) for line in lines()]
    assert all(s for s, f in zip(same, falls_back, strict=True) if not f)


# ---------------------------------------------------------------- a model made here


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_a_model_trained_here_says_the_same_there(kind: str, tmp_path: Path) -> None:
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("The cat sat on the mat. The dog sat on the log. The cow jumped over the moon.\n" * 300)
    made = []
    if kind == "bpe":
        made = ["--tokenizer", str(tmp_path / "t.model")]
        assert main.run(["tokenizer", "train", str(text), "-o", made[1], "--n-vocab", "300"]) == 0
    sizes = ["n_embd=32", "n_layer=2", "n_head=4", "n_ff=64"]
    assert main.run(["export", "llama", *sizes, "-o", str(tmp_path / "g.bin"), *made, "--ctx", "32"]) == 0
    trains = ["train", str(tmp_path / "g.bin"), "--data", str(text), "-o", str(run), "--steps", "60", "--predict", "0"]
    assert main.run([*trains, "--lr", "5e-3"]) == 0
    assert main.run(["export-gguf", str(run), "-o", str(tmp_path / "m.gguf")]) == 0
    runtime, tokenizer = open_model(run, threads=1)
    prompt = tokenizer.encode("The cat").tolist()
    with runtime:
        ours = "".join(Generator(runtime, tokenizer).text("The cat", 24, Sampling(temperature=0)))
    answer = llamacpp(tmp_path / "m.gguf", prompt=prompt, n=24, lines=["The cat"])
    assert answer["lines"] == [prompt]
    assert answer["text"] == ours
    assert "mat" in ours or "sat" in ours
