"""What transformers loads is loaded, however it is named and filed; what is not read is named, with the way out."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import checkpoints as ck
import numpy as np
import pytest
from numpy.typing import NDArray

from ggmlgraph.errors import FormatError, GGError, UnsupportedError, UsageError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.interchange import checkpoints, convert, naming
from ggmlgraph.interchange.formats.wrappers import unwrapped
from ggmlgraph.models import gemma, gpt2, gpt_neox, llama, mixtral, qwen3
from ggmlgraph.tracing.tracer import trace

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Model:
    """An architecture, its sizes, and how config.json says them."""

    module: Any
    config: Any
    json: Mapping[str, Any]

    def weights(self) -> Arrays:
        """Random, by our names."""
        rng = np.random.default_rng(0)
        nodes = [node for node in trace(self.module.loss, self.config, ctx=4).nodes if node.initializer]
        return {node.name: rng.standard_normal(tuple(map(int, node.shape))).astype("<f4") for node in nodes}

    def theirs(self) -> Arrays:
        """The same as Hugging Face names and orders them."""
        name = self.module.__name__.rpartition(".")[2]
        known, found = naming.formats(name)["huggingface"], {}
        for ours, array in self.weights().items():
            array = array - np.float32(known.added(ours))
            order = known.row_order(ours)
            if order is not None:
                array = array[np.argsort(order.index(len(array), vars(self.config)))]
            found[known.theirs(ours)] = np.ascontiguousarray(array.T if known.is_transposed(ours) else array)
        return found


SIZES = {"n_vocab": 11, "n_embd": 8, "n_head": 4, "n_layer": 2, "n_ff": 12}
JSON = {
    "vocab_size": 11, "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
    "intermediate_size": 12, "rms_norm_eps": 1e-5,
}  # fmt: skip
LLAMA = Model(llama, llama.Config(**SIZES, n_head_kv=2), JSON | {"model_type": "llama"})
TIED = Model(llama, replace(LLAMA.config, tied=True), LLAMA.json | {"tie_word_embeddings": True})
BIASED = Model(
    llama,
    replace(LLAMA.config, attn_bias=True, ffn_bias=True),
    LLAMA.json | {"attention_bias": True, "mlp_bias": True},
)
QWEN3 = Model(
    qwen3,
    qwen3.Config(**SIZES, n_head_kv=2, head_dim=4, norm_eps=1e-5, rope_freq_base=10000.0, attn_bias=True),
    JSON | {"model_type": "qwen3", "head_dim": 4, "attention_bias": True},
)
GEMMA = Model(
    gemma, gemma.Config(**SIZES, n_head_kv=2, head_dim=4, norm_eps=1e-5), JSON | {"model_type": "gemma", "head_dim": 4}
)
MIXTRAL = Model(
    mixtral,
    mixtral.Config(**SIZES, n_head_kv=2, n_expert=3, rope_freq_base=10000.0),
    JSON | {"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2},
)
GPT2 = Model(
    gpt2,
    gpt2.Config(**SIZES, n_ctx=16),
    {"model_type": "gpt2", "vocab_size": 11, "n_embd": 8, "n_head": 4, "n_layer": 2, "n_positions": 16, "n_inner": 12,
     "layer_norm_epsilon": 1e-5},
)  # fmt: skip
NEOX = Model(
    gpt_neox,
    gpt_neox.Config(n_vocab=11, n_embd=16, n_head=2, n_layer=2, n_ff=12),
    {"model_type": "gpt_neox", "vocab_size": 11, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2,
     "intermediate_size": 12, "layer_norm_eps": 1e-5, "hidden_act": "gelu"},
)  # fmt: skip


def write(folder: Path, config: Mapping[str, Any], **files: Arrays) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, arrays in files.items():
        ck.write_safetensors(folder / f"{name}.safetensors", arrays)
    return folder


def read_back(source: Path, out: Path, **given: Any) -> Arrays:
    """The weights of what a checkpoint is converted to."""
    convert.convert(checkpoints.find(source, given), out, batch=1, ctx=4, tokenizer=None)
    with Runtime(out, threads=1, batch=1, ctx=4) as runtime:
        return {name: runtime.get(name) for name in runtime.params}


def assert_same(found: Arrays, wanted: Arrays, atol: float = 0) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, atol=atol, rtol=0, err_msg=name)


# ---------------------------------------------------------------- heads


@pytest.mark.parametrize("model", [TIED, GPT2, GEMMA], ids=["llama", "gpt2", "gemma"])
def test_a_tied_model_with_a_head_of_its_own_keeps_it_and_says_so(model: Model, tmp_path: Path) -> None:
    head = np.random.default_rng(1).standard_normal((11, 8)).astype("<f4")
    folder = write(tmp_path / "hf", model.json, model=model.theirs() | {"lm_head.weight": head})
    source = checkpoints.find(folder)
    assert source.config["tied"] is False
    assert "lm_head.weight is another matrix" in source.notes[0]
    assert_same(read_back(folder, tmp_path / "g.bin"), model.weights() | {"output.weight": head}, 1e-6)


def test_a_tied_model_with_a_copy_of_its_embedding_stays_tied(tmp_path: Path) -> None:
    arrays = TIED.theirs()
    folder = write(tmp_path / "hf", TIED.json, model=arrays | {"lm_head.weight": arrays["model.embed_tokens.weight"]})
    assert_same(read_back(folder, tmp_path / "g.bin"), TIED.weights())


def test_a_tied_model_of_which_only_the_head_was_kept_is_read(tmp_path: Path) -> None:
    arrays = TIED.theirs()
    arrays["lm_head.weight"] = arrays.pop("model.embed_tokens.weight")
    assert_same(read_back(write(tmp_path / "hf", TIED.json, model=arrays), tmp_path / "g.bin"), TIED.weights())


def test_a_tied_gpt_neox_is_read(tmp_path: Path) -> None:
    tied = Model(gpt_neox, replace(NEOX.config, tied=True), NEOX.json | {"tie_word_embeddings": True})
    assert_same(read_back(write(tmp_path / "hf", tied.json, model=tied.theirs()), tmp_path / "g.bin"), tied.weights())


@pytest.mark.parametrize("model", [BIASED, QWEN3], ids=["llama", "qwen3"])
def test_biases_that_a_configuration_says_are_read(model: Model, tmp_path: Path) -> None:
    assert "blk.0.attn_q.bias" in model.weights()
    found = read_back(write(tmp_path / "hf", model.json, model=model.theirs()), tmp_path / "g.bin")
    assert_same(found, model.weights())


@pytest.mark.parametrize(
    ("word", "exact"), [("gelu", True), ("gelu_python", True), ("gelu_new", False), ("gelu_fast", False)]
)
@pytest.mark.parametrize("model", [GPT2, NEOX], ids=["gpt2", "gpt_neox"])
def test_the_gelu_of_a_configuration_is_the_models(model: Model, word: str, exact: bool, tmp_path: Path) -> None:
    key = "activation_function" if model is GPT2 else "hidden_act"
    source = checkpoints.find(write(tmp_path / "hf", {**model.json, key: word}, model=model.theirs()))
    assert source.config["exact_gelu"] is exact


# ---------------------------------------------------------------- names

PREFIXES = (
    "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "base_model.model.", "model.",
    "module.model.", "_orig_mod.base_model.model.", "_fsdp_wrapped_module.",
)  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("model", [LLAMA, TIED, GPT2], ids=["llama", "tied", "gpt2"])
def test_wrappers_before_the_names_are_taken_off(prefix: str, model: Model, tmp_path: Path) -> None:
    arrays = {prefix + name: array for name, array in model.theirs().items()}
    assert_same(read_back(write(tmp_path / "hf", model.json, model=arrays), tmp_path / "g.bin"), model.weights())


def test_wrappers_inside_the_names_are_taken_off(tmp_path: Path) -> None:
    names = {name: name.replace("self_attn.", "self_attn._orig_mod.") for name in LLAMA.theirs()}
    arrays = {names[name]: array for name, array in LLAMA.theirs().items()}
    assert_same(read_back(write(tmp_path / "hf", LLAMA.json, model=arrays), tmp_path / "g.bin"), LLAMA.weights())


def test_names_that_would_become_the_same_are_left() -> None:
    assert unwrapped({"module.a": 1, "module._orig_mod.a": 2})[0] == {"module.a": 1, "module._orig_mod.a": 2}


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_an_error_quotes_the_names_of_the_file(prefix: str, tmp_path: Path) -> None:
    arrays = {name.removeprefix("model."): array for name, array in TIED.theirs().items()}
    arrays = {prefix + name: array for name, array in (arrays | {"strange": np.zeros(3, "<f4")}).items()}
    with pytest.raises(FormatError, match=rf": {prefix}strange unknown$"):
        read_back(write(tmp_path / "hf", TIED.json, model=arrays), tmp_path / "g.bin")


COMPUTED = ("model.rotary_emb.inv_freq", "rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq")


@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_computed_is_skipped_at_any_level(name: str, tmp_path: Path) -> None:
    arrays = LLAMA.theirs() | {name: np.ones(2, "<f4")}
    assert_same(read_back(write(tmp_path / "hf", LLAMA.json, model=arrays), tmp_path / "g.bin"), LLAMA.weights())


def test_the_head_of_a_gpt_neox_by_its_later_name_is_read(tmp_path: Path) -> None:
    arrays = {name.replace("embed_out", "lm_head"): array for name, array in NEOX.theirs().items()}
    assert_same(read_back(write(tmp_path / "hf", NEOX.json, model=arrays), tmp_path / "g.bin"), NEOX.weights())


def test_experts_as_later_versions_fuse_them_are_read(tmp_path: Path) -> None:
    arrays: Arrays = {}
    for name, array in MIXTRAL.theirs().items():
        place, _, kind = name.partition(".block_sparse_moe.")
        if kind == "gate.weight":
            arrays[f"{place}.mlp.gate.weight"] = array
        elif kind.endswith("w2.weight"):
            arrays[f"{place}.mlp.experts.down_proj"] = array
        elif kind.endswith("w1.weight"):
            up = MIXTRAL.theirs()[name.replace("w1.weight", "w3.weight")]
            arrays[f"{place}.mlp.experts.gate_up_proj"] = np.concatenate([array, up], 1)
        elif not kind:
            arrays[name] = array
    assert_same(read_back(write(tmp_path / "hf", MIXTRAL.json, model=arrays), tmp_path / "g.bin"), MIXTRAL.weights())


# ---------------------------------------------------------------- several files


def in_two(folder: Path, listed: Mapping[str, str] | None, **more: NDArray[Any]) -> Path:
    arrays = LLAMA.theirs()
    names = list(arrays)
    files = {"model-00001-of-00002": names[:9], "model-00002-of-00002": names[9:]}
    parts = {file: {name: arrays[name] for name in held} for file, held in files.items()}
    parts["model-00001-of-00002"] |= more
    write(folder, LLAMA.json, **parts)
    if listed is not None:
        table = {name: f"{file}.safetensors" for file, held in files.items() for name in held} | listed
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return folder


SECOND = "model-00002-of-00002.safetensors"
INDEXES: dict[str, tuple[dict[str, str] | None, Arrays]] = {
    "right": ({}, {}),
    "none": (None, {}),
    "a tied head listed": ({"lm_head.weight": SECOND}, {}),
    "a computed tensor listed": ({"model.rotary_emb.inv_freq": SECOND}, {}),
    "a computed tensor not listed": ({}, {"model.rotary_emb.inv_freq": np.ones(2, "<f4")}),
    "a tensor listed in the other file": ({"model.norm.weight": "model-00001-of-00002.safetensors"}, {}),
}


@pytest.mark.parametrize("name", INDEXES)
def test_files_count_where_an_index_says_otherwise(name: str, tmp_path: Path) -> None:
    listed, more = INDEXES[name]
    assert_same(read_back(in_two(tmp_path / "hf", listed, **more), tmp_path / "g.bin"), LLAMA.weights())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: (f / SECOND).unlink(), "00002-of-00002.safetensors: no such file; model.safetensors.index.json"),
        (lambda f: ((f / SECOND).unlink(), (f / "model.safetensors.index.json").unlink()), "not all, and no index"),
        (lambda f: (f / SECOND).write_bytes(b"version https://git-lfs"), "00002.safetensors: a Git LFS pointer"),
    ],
)
def test_a_part_that_is_not_there_is_named(change: Callable[[Path], Any], reason: str, tmp_path: Path) -> None:
    folder = in_two(tmp_path / "hf", {})
    change(folder)
    with pytest.raises(GGError, match=reason):
        checkpoints.find(folder)


def test_one_part_alone_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is part 2 of 2: give its folder"):
        checkpoints.find(in_two(tmp_path / "hf", {}) / SECOND)


PAIRS = {
    "general.architecture": "llama", "llama.embedding_length": 8, "llama.block_count": 2, "llama.context_length": 32,
    "llama.feed_forward_length": 12, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip


def gguf_in_two(folder: Path, model: Model, **said: int) -> Path:
    arrays = model.weights()
    names = list(arrays)
    for k, held in enumerate((names[:7], names[7:])):
        pairs = (PAIRS if k == 0 else {}) | {"split.no": k, "split.count": 2, "split.tensors.count": len(names)} | said
        data = ck.gguf_bytes(pairs, {name: arrays[name] for name in held})
        (folder / f"m-0000{k + 1}-of-00002.gguf").write_bytes(data)
    return folder / "m-00001-of-00002.gguf"


@pytest.mark.parametrize("model", [LLAMA, BIASED], ids=["plain", "biases"])
def test_a_gguf_model_in_several_files_is_read_from_the_first(model: Model, tmp_path: Path) -> None:
    assert_same(read_back(gguf_in_two(tmp_path, model), tmp_path / "g.bin"), model.weights())


def test_another_part_of_a_gguf_model_names_the_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is part 2 of 2: give .*m-00001-of-00002\.gguf"):
        checkpoints.find(gguf_in_two(tmp_path, LLAMA).with_name("m-00002-of-00002.gguf"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda first: first.with_name("m-00002-of-00002.gguf").unlink(), "m-00002-of-00002.gguf: no such file"),
        (lambda first: first.with_name("m-00002-of-00002.gguf").write_bytes(first.read_bytes()), "not part 2 of 2"),
    ],
)
def test_a_gguf_model_without_its_other_parts_is_refused(
    change: Callable[[Path], Any], reason: str, tmp_path: Path
) -> None:
    first = gguf_in_two(tmp_path, LLAMA)
    change(first)
    with pytest.raises(GGError, match=reason):
        checkpoints.find(first)


def test_a_gguf_model_whose_parts_lack_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="its parts have 21 tensors, not 99"):
        checkpoints.find(gguf_in_two(tmp_path, LLAMA, **{"split.tensors.count": 99}))


# ---------------------------------------------------------------- strangers


STRANGERS: dict[str, tuple[bytes, str]] = {
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html>", "web page"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(9), "gzip"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(9), "zstd"),
    "UTF-16": ("text".encode("utf-16"), "UTF-16"),
    "empty": (b"", "empty"),
    "zeros": (bytes(4096), "zeros"),
}


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("place", ["model.safetensors", "pytorch_model.bin", "x.gguf", "config.json"])
def test_a_file_that_is_something_else_is_named_by_what_it_is(name: str, place: str, tmp_path: Path) -> None:
    data, reason = STRANGERS[name]
    folder = write(tmp_path / "hf", LLAMA.json, **({"model": LLAMA.theirs()} if place == "config.json" else {}))
    (folder / place).write_bytes(data)
    with pytest.raises(FormatError, match=f"{place}: .*{reason}"):
        checkpoints.find(folder / place if place == "x.gguf" else folder)


@pytest.mark.parametrize("config", [None, LLAMA.json])
def test_an_adapter_is_told_as_such_with_its_base(config: Any, tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base", "peft_type": "L"}))
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    arrays = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((2, 8), "<f4")}
    ck.write_safetensors(folder / "adapter_model.safetensors", arrays)
    with pytest.raises(UnsupportedError, match="LoRA adapter of some/base"):
        checkpoints.find(folder)
    with pytest.raises(UnsupportedError, match="LoRA adapter"):
        checkpoints.find(folder / "adapter_model.safetensors")


QUANTISED: dict[str, tuple[dict[str, Any], Arrays, str]] = {
    "said": ({"quantization_config": {"quant_method": "awq"}}, {}, "awq"),
    "mlx": ({"quantization": {"group_size": 64, "bits": 4}}, {}, "MLX"),
    "gptq": ({}, {"model.layers.0.mlp.up_proj.g_idx": np.zeros(3, "<f4")}, "GPTQ"),
    "bitsandbytes": ({}, {"model.layers.0.mlp.up_proj.weight.absmax": np.zeros(3, "<f4")}, "bitsandbytes"),
    "fp8": ({}, {"model.layers.0.mlp.up_proj.weight_scale_inv": np.zeros(3, "<f4")}, "FP8"),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_weights_that_another_program_quantised_are_named(name: str, tmp_path: Path) -> None:
    config, more, reason = QUANTISED[name]
    folder = write(tmp_path / "hf", {**LLAMA.json, **config}, model=LLAMA.theirs() | more)
    with pytest.raises(UnsupportedError, match=f"quantised with {reason}"):
        checkpoints.find(folder)


def test_fp8_numbers_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "hf", LLAMA.json)
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    with pytest.raises(UnsupportedError, match="'a' is FP8"):
        checkpoints.find(folder)


# ---------------------------------------------------------------- llm.c

LLM_C = Model(gpt2, gpt2.Config(n_vocab=11, n_embd=8, n_head=4, n_layer=2, n_ctx=16), {})


def llmc_bytes(version: int, n_rows: int = 16) -> bytes:
    arrays = LLM_C.weights()
    n_rows = 11 if version == 1 else n_rows
    head = struct.pack("<8i", 20240326, version, 16, 11, 2, 4, 8, 0 if version == 1 else n_rows)
    filled = np.concatenate([arrays["token_embd.weight"], np.zeros((n_rows - 11, 8), "<f4")])
    parts = [filled, arrays["position_embd.weight"]]
    for name in ("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down"):
        parts += [arrays[f"blk.{i}.{name}.{kind}"] for kind in ("weight", "bias") for i in range(2)]
    parts += [arrays["output_norm.weight"], arrays["output_norm.bias"]]
    flat = np.concatenate([part.ravel() for part in parts])
    body = (flat.view("<u4") >> 16).astype("<u2") if version == 5 else flat
    return head + bytes(1024 - len(head)) + body.tobytes()


@pytest.mark.parametrize("version", [1, 3, 5])
def test_a_checkpoint_of_llm_c_is_read(version: int, tmp_path: Path) -> None:
    (tmp_path / "gpt2.bin").write_bytes(llmc_bytes(version))
    found = read_back(tmp_path / "gpt2.bin", tmp_path / "g.bin")
    if version == 5:
        wanted = {n: (a.view("<u4") >> 16 << 16).astype("<u4").view("<f4") for n, a in LLM_C.weights().items()}
    else:
        wanted = LLM_C.weights()
    assert_same(found, wanted)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (llmc_bytes(3)[:900], "ends inside its header"),
        (llmc_bytes(3)[:-4], "its header asks for"),
        (struct.pack("<8i", 20240326, 9, *[1] * 6) + bytes(1024), "version 9"),
        (struct.pack("<8i", 20240326, 3, 16, 11, 2, 3, 8, 16) + bytes(1024), "makes no sense"),
        (struct.pack("<8i", 20240326, 3, 16, 11, 1 << 30, 4, 8, 16) + bytes(1024), "makes no sense"),
        (struct.pack("<8i", 20240326, 3, -1, 11, 2, 4, 8, 16) + bytes(1024), "makes no sense"),
    ],
)
def test_a_malformed_checkpoint_of_llm_c_is_refused(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "gpt2.bin").write_bytes(data)
    with pytest.raises(GGError, match=reason):
        checkpoints.find(tmp_path / "gpt2.bin")
