"""Models go out as GGUF files and folders for transformers, and come back as they were."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from randommodels import LLAMA3, MODELS, graph_of

from ggmlgraph.cli import main
from ggmlgraph.data.documents import lines_of
from ggmlgraph.errors import UnsupportedError, UsageError
from ggmlgraph.generation.generate import open_model
from ggmlgraph.graphfile import reader, records
from ggmlgraph.interchange import checkpoints, convert, exportgguf, exporthf, trained
from ggmlgraph.interchange.formats import gguf
from ggmlgraph.tokenizers import pipeline, spm, togguf
from ggmlgraph.tokenizers.huggingface import HuggingFaceTokenizer
from ggmlgraph.tokenizers.plain import BytesTokenizer, CharsTokenizer
from ggmlgraph.tokenizers.sentencepiece import SentencePieceTokenizer
from ggmlgraph.tokenizers.settings import Settings
from ggmlgraph.tokenizers.training import train_tokenizer


@pytest.fixture(params=MODELS)
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    architecture, fields = MODELS[request.param]
    return graph_of(architecture, tmp_path / "graph.bin", BytesTokenizer(), **fields)


def back(path: Path, out: Path) -> Path:
    source = checkpoints.find(path)
    convert.convert(source, out, batch=1, ctx=16, tokenizer=source.tokenizer)
    return out


def parameters(path: Path) -> dict[str, bytes]:
    file = reader.read(path)
    return {record.name: file.array(i).tobytes() for i, record in enumerate(file.records) if record.is_param}


def test_weights_are_the_same_bytes_after_a_folder_for_transformers(graph: Path, tmp_path: Path) -> None:
    exporthf.export(trained.find(graph), tmp_path / "hf")
    assert parameters(back(tmp_path / "hf", tmp_path / "again.bin")) == parameters(graph)


def test_weights_too_large_for_one_file_are_the_same_bytes_after_several(graph: Path, tmp_path: Path) -> None:
    exporthf.export(trained.find(graph), tmp_path / "hf", shard_nbytes=20_000)
    shards = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert shards == [f"model-{k + 1:05}-of-{len(shards):05}.safetensors" for k in range(len(shards))]
    assert len(shards) > 2
    assert parameters(back(tmp_path / "hf", tmp_path / "again.bin")) == parameters(graph)


def test_weights_are_the_same_bytes_after_a_gguf_file(graph: Path, tmp_path: Path) -> None:
    exportgguf.export(trained.find(graph), tmp_path / "m.gguf", "f32")
    assert parameters(back(tmp_path / "m.gguf", tmp_path / "again.bin")) == parameters(graph)


def test_the_computation_is_the_same_after_both(graph: Path, tmp_path: Path) -> None:
    exporthf.export(trained.find(graph), tmp_path / "hf")
    exportgguf.export(trained.find(back(tmp_path / "hf", tmp_path / "hf.bin")), tmp_path / "m.gguf", "f32")
    files = [reader.read(path) for path in (graph, back(tmp_path / "m.gguf", tmp_path / "again.bin"))]
    first, last = (records.computation(file.records, file.find("logits") or 0) for file in files)
    assert [step[2:4] for step in first] == [step[2:4] for step in last]


# ---------------------------------------------------------------- what is said, and what is refused


def test_the_command_writes_a_gguf_file_and_says_what_to_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = graph_of("llama", tmp_path / "g.bin", BytesTokenizer(), n_vocab=260)
    assert main.run(["export-gguf", str(graph), "-o", str(tmp_path / "m.gguf"), "--type", "q8_0", "--ctx", "99"]) == 0
    captured = capsys.readouterr()
    assert "llama, q8_0" in captured.out
    assert "4 ids more than the tokenizer" in captured.err
    assert "of q8_0: blk.0.ffn_down.weight" in captured.err  # its rows are 48 long
    pairs = gguf.read(_f32(graph, tmp_path)).pairs
    assert pairs["llama.rope.dimension_count"] == 8
    assert pairs["tokenizer.ggml.tokens"][256:] == [b"[PAD256]", b"[PAD257]", b"[PAD258]", b"[PAD259]"]
    assert pairs["tokenizer.ggml.token_type"].tolist()[255:] == [1, 5, 5, 5, 5]


def _f32(graph: Path, folder: Path) -> Path:
    exportgguf.export(trained.find(graph), folder / "f32.gguf", "f32")
    return folder / "f32.gguf"


def test_vectors_stay_f32_and_a_tied_head_is_not_written(tmp_path: Path) -> None:
    graph = graph_of("llama", tmp_path / "g.bin", BytesTokenizer(), tied=True)
    exportgguf.export(trained.find(graph), tmp_path / "m.gguf", "f16")
    tensors = gguf.read(tmp_path / "m.gguf").tensors
    assert {t.dtype for t in tensors.values() if len(t.shape) == 1} == {"f32"}
    assert {t.dtype for t in tensors.values() if len(t.shape) == 2} == {"f16"}
    assert "output.weight" not in tensors


def test_chat_template_and_special_ids_go_along_and_come_back(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("the cat sat on the mat " * 50)
    tokenizer = train_tokenizer(lines_of([tmp_path / "text"]), tmp_path / "m.model", n_vocab=272)
    tokenizer.apply(Settings(chat_template="{{ x }}", bos="</s>", eos="<s>", adds_bos=True))
    graph = graph_of("llama", tmp_path / "g.bin", tokenizer, n_vocab=272)
    exporthf.export(trained.find(graph), tmp_path / "hf")
    exportgguf.export(trained.find(graph), tmp_path / "m.gguf", "f32")
    for path in (tmp_path / "hf", tmp_path / "m.gguf"):
        again = checkpoints.find(path).tokenizer
        assert again is not None
        assert (again.chat_template, again.bos_id, again.eos_id, again.adds_bos) == ("{{ x }}", 2, 1, True)
        assert again.encode("the mat\n").tolist() == tokenizer.encode("the mat\n").tolist()


def test_weights_of_a_run_are_its_latest_checkpoints(tmp_path: Path) -> None:
    run = tmp_path / "run"
    graph = graph_of("llama", tmp_path / "g.bin", BytesTokenizer())
    (tmp_path / "text").write_text("abc " * 500)
    trains = ["train", str(graph), "--data", str(tmp_path / "text"), "-o", str(run), "--steps", "2", "--predict", "0"]
    assert main.run([*trains, "--ctx", "8", "--lr", "1e-2"]) == 0
    exportgguf.export(trained.find(run), tmp_path / "m.gguf", "f32")
    source = checkpoints.find(tmp_path / "m.gguf")
    convert.convert(source, tmp_path / "again.bin", batch=1, ctx=8, tokenizer=None)
    with open_model(run, threads=1)[0] as runtime:
        wanted = {name: runtime.get(name).tobytes() for name in runtime.params}
    assert parameters(tmp_path / "again.bin") == wanted
    assert source.n_ctx == 8


OWN = """
import ggmlgraph as gg
from ggmlgraph.models import llama
from ggmlgraph.models.llama import Config

def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Config) -> gg.Tensor:
    return p.cross_entropy(llama.logits(p, tokens, c){change}, targets)
"""


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [("mine.py", "", "a model of your own"), ("llama.py", " * 0.5", "not that of our llama")],
)
def test_a_model_that_other_programs_do_not_know_is_refused(
    file: str, change: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(OWN.format(change=change))
    sizes = ["n_embd=32", "n_layer=1"]
    assert main.run(["export", f"{tmp_path / file}:loss", *sizes, "-o", str(tmp_path / "g.bin")]) == 0
    with pytest.raises(UnsupportedError, match=reason):
        trained.find(tmp_path / "g.bin")


def test_a_setting_that_the_format_cannot_say_is_refused(tmp_path: Path) -> None:
    model = trained.find(graph_of("gpt2", tmp_path / "g.bin", BytesTokenizer(), n_ctx=64, exact_gelu=True))
    with pytest.raises(UnsupportedError, match="cannot say exact_gelu True"):
        exportgguf.export(model, tmp_path / "m.gguf", "f32")
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_scaling_that_llamacpp_does_not_know_of_an_architecture_is_refused(tmp_path: Path) -> None:
    model = trained.find(graph_of("qwen2", tmp_path / "g.bin", BytesTokenizer(), n_head_kv=2, **LLAMA3))
    with pytest.raises(UnsupportedError, match="cannot say rope_scaling 'llama3'"):
        exportgguf.export(model, tmp_path / "m.gguf", "f32")


def test_a_constant_other_than_the_config_says_is_another_model(tmp_path: Path) -> None:
    graph = graph_of("llama", tmp_path / "g.bin", BytesTokenizer(), **LLAMA3)
    factors = trained.find(graph).constants["rope_freqs.weight"]
    with graph.open("r+b") as file:
        file.seek(factors.offset)
        file.write(np.float32(2).tobytes())
    with pytest.raises(UnsupportedError, match="not that of our llama"):
        trained.find(graph)


def test_a_weight_beyond_f16_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    graph = graph_of("llama", tmp_path / "g.bin", BytesTokenizer())
    model = trained.find(graph)
    huge = np.float32(1e30).tobytes()
    with graph.open("r+b") as file:
        file.seek(model.tensors["blk.0.attn_q.weight"].offset)
        file.write(huge)
    with pytest.raises(UnsupportedError, match="too large for F16"):
        exportgguf.export(model, tmp_path / "m.gguf", "f16")
    assert not list(tmp_path.glob("*.gguf*"))
    assert not list(tmp_path.glob(".*"))


def test_a_folder_with_files_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "x").touch()
    with pytest.raises(UsageError, match="already"):
        exporthf.export(trained.find(graph_of("llama", tmp_path / "g.bin")), tmp_path / "hf")


def spm_bytes(**fields: Any) -> bytes:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    model = spm.SpmModel(
        ["<unk>", "<s>", "</s>", *bytes_, "▁", "a"], [0.0] * 261, [2, 3, 3] + [6] * 256 + [1, 1], spm.BPE,
        byte_fallback=True, remove_extra_whitespaces=False,
    )  # fmt: skip
    return spm.write(dataclasses.replace(model, **fields))


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def json_bytes(**changes: Any) -> bytes:
    vocabulary = {pipeline.spelt(bytes([b])): b for b in range(256)}
    file = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "pre_tokenizer": BYTE_LEVEL}
    return json.dumps({**file, "decoder": BYTE_LEVEL, **changes}).encode()


REFUSED: dict[str, tuple[Any, str]] = {
    "no byte pieces": (
        lambda: SentencePieceTokenizer(spm_bytes(byte_fallback=False, types=[2, 3, 3] + [1] * 258)),
        "needs the 256 byte pieces",
    ),
    "spaces joined": (lambda: SentencePieceTokenizer(spm_bytes(remove_extra_whitespaces=True)), "normalises text"),
    "words": (lambda: SentencePieceTokenizer(spm_bytes(model_type=3)), "no form in GGUF"),
    "an alphabet": (lambda: CharsTokenizer("ab"), "no tokenizer like chars"),
    "another way to split": (
        lambda: HuggingFaceTokenizer(json_bytes(pre_tokenizer=BYTE_LEVEL | {"use_regex": False})),
        "no name for the way",
    ),
    "lower case": (lambda: HuggingFaceTokenizer(json_bytes(normalizer={"type": "Lowercase"})), "Lowercase"),
    "merges that stop early": (
        lambda: HuggingFaceTokenizer(
            json.dumps(
                {
                    "model": {"type": "BPE", "vocab": {"<unk>": 0, "a": 1, "b": 2, "ab": 3}, "unk_token": "<unk>",
                              "merges": [], "byte_fallback": True},
                    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                    "decoder": {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                }
            ).encode()
        ),
        "never joins 'a' and 'b'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_that_llamacpp_would_get_wrong_is_refused(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(UnsupportedError, match=reason):
        togguf.section(make(), 300)
