"""Checkpoints of other programs become graphs: the originals' logits, the same text, and every bad file refused."""

from __future__ import annotations

import json
import resource
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints as ck
import numpy as np
import pytest
from places import REAL

from ggmlgraph.cli import main
from ggmlgraph.errors import DataError, FormatError, GGError, UnsupportedError, UsageError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.generation.generate import Generator, open_model
from ggmlgraph.generation.sampling import Sampling
from ggmlgraph.interchange import checkpoints, convert, naming
from ggmlgraph.interchange.sources import ggml
from ggmlgraph.interchange.tokenizer import load_tokenizer
from ggmlgraph.models import gpt2, gpt_neox, llama, mixtral
from ggmlgraph.tokenizers import spm
from ggmlgraph.tokenizers.leaf import tokenizer_from_bytes
from ggmlgraph.tokenizers.plain import BytesTokenizer
from ggmlgraph.tracing.tracer import trace

STORIES, NEOX = REAL / "stories260K", REAL / "gptneox-shakespeare"
LLAMA_FORMS = {  # and how far their logits may be from transformers'
    "stories260K/hf": 5e-4,
    "stories260K/consolidated.00.pth": 5e-4,
    "stories260K/stories260K.bin": 5e-4,
    "stories260K/stories260K-f32.gguf": 5e-4,
    "stories260K/hf/pytorch_model.bf16.bin": 0.25,  # weights of 8 bits; logits are up to 22
}
NEOX_FORMS = {
    "gptneox-shakespeare": 5e-4,
    "gptneox-shakespeare/sharded": 5e-4,
    "gptneox-shakespeare/gptneox-shakespeare-f32.gguf": 5e-4,
}


def shared(form: str) -> Path:
    path = REAL / form
    if not path.exists():
        pytest.skip(f"for want of {path}")
    return path


def converted(path: Path, out: Path, tokenizer: Path | None = None, ctx: int = 128) -> Path:
    chosen = load_tokenizer(tokenizer) if tokenizer else None
    convert.convert(checkpoints.find(path), out, batch=1, ctx=ctx, tokenizer=chosen)
    return out


# ---------------------------------------------------------------- real checkpoints


@pytest.mark.parametrize(("form", "tolerance"), (LLAMA_FORMS | NEOX_FORMS).items())
def test_logits_are_those_of_transformers(form: str, tolerance: float, tmp_path: Path) -> None:
    path = shared(form)
    reference = np.load(REAL / form.split("/")[0] / "ref_logits_transformers.npz")
    ids = reference["ids"].astype(np.int32)
    with Runtime(converted(path, tmp_path / "graph.bin"), threads=1, ctx=len(ids)) as runtime:
        logits = runtime.forward("logits", tokens=ids[None])[0].reshape(len(ids), -1)
    assert np.abs(logits - reference["logits"]).max() < tolerance
    np.testing.assert_array_equal(logits.argmax(1), reference["logits"].argmax(1))


TRAINED_260K = llama.Config(512, 64, 8, 4, 5, 172, tied=True)
MADE: dict[str, tuple[Callable[[Path, ck.Arrays, ck.Arrays], Path], float]] = {  # of weights by their names and by ours
    "a folder with a PyTorch file": (lambda path, theirs, _: ck.write_torch(path / "pytorch_model.bin", theirs), 5e-4),
    "a folder with an old PyTorch file": (
        lambda path, theirs, _: ck.write_legacy(path / "pytorch_model.bin", theirs),
        5e-4,
    ),
    "llama2.c, version 1": (lambda path, _, ours: _written(path, later_llama2c_bytes(1, TRAINED_260K, ours)), 5e-4),
    "llama2.c, version 2": (
        lambda path, _, ours: _written(path, later_llama2c_bytes(2, TRAINED_260K, ours, 32)),
        0.5,
    ),
}


def _written(folder: Path, data: bytes) -> Path:
    (folder / "m.bin").write_bytes(data)
    return folder / "m.bin"


@pytest.mark.parametrize("form", MADE)
def test_a_real_model_in_forms_made_here_has_the_logits_of_transformers(form: str, tmp_path: Path) -> None:
    source = checkpoints.find(shared("stories260K/hf"))
    theirs = {name: np.concatenate(list(t.chunks())).reshape(t.shape) for name, t in source.tensors.items()}
    ours = stored_weights(converted(shared("stories260K/hf"), tmp_path / "first.bin"))
    make, tolerance = MADE[form]
    (tmp_path / "config.json").write_bytes(shared("stories260K/hf/config.json").read_bytes())
    reference = np.load(REAL / "stories260K" / "ref_logits_transformers.npz")
    ids = reference["ids"].astype(np.int32)
    path = make(tmp_path, theirs, ours)
    with Runtime(converted(path, tmp_path / "graph.bin"), threads=1, ctx=len(ids)) as runtime:
        logits = runtime.forward("logits", tokens=ids[None])[0].reshape(len(ids), -1)
    assert np.abs(logits - reference["logits"]).max() < tolerance


def greedy(graph: Path, prompt: str) -> str:
    runtime, tokenizer = open_model(graph, threads=1, ctx=64)
    with runtime:
        return "".join(Generator(runtime, tokenizer).text(prompt, 40, Sampling(temperature=0)))


@pytest.mark.parametrize(
    ("forms", "tokenizer", "prompt", "begins"),
    [
        (
            list(LLAMA_FORMS)[:4],
            "stories260K/tok512.model",
            "Once upon a time",
            ", there was a little girl named Lily.",
        ),
        (list(NEOX_FORMS), "gptneox-shakespeare/tokenizer.json", "ROMEO:", "\nSir, I"),
    ],
)
def test_greedy_text_is_the_same_from_every_form(
    forms: list[str], tokenizer: str, prompt: str, begins: str, tmp_path: Path
) -> None:
    if tokenizer.endswith(".json"):
        pytest.importorskip("tokenizers", reason="for want of tokenizers")
    graphs = [converted(shared(form), tmp_path / f"{i}.bin", shared(tokenizer)) for i, form in enumerate(forms)]
    texts = {greedy(graph, prompt) for graph in graphs}
    assert len(texts) == 1
    assert texts.pop().removeprefix(prompt).startswith(begins)


@pytest.mark.parametrize(
    ("form", "tokenizer"),
    [("stories260K/hf", "stories260K/tok512.model"), ("gptneox-shakespeare", "gptneox-shakespeare/tokenizer.json")],
)
def test_weights_taken_in_the_wrong_order_are_told(form: str, tokenizer: str, tmp_path: Path) -> None:
    if tokenizer.endswith(".json"):
        pytest.importorskip("tokenizers", reason="for want of tokenizers")
    source, chosen = checkpoints.find(shared(form)), load_tokenizer(shared(tokenizer))
    mistaken = replace(source, format=replace(source.format, rows={}))
    results = []
    for s in (source, mistaken):
        results.append(convert.convert(s, tmp_path / "graph.bin", batch=1, ctx=8, tokenizer=chosen).check)
    right, wrong = results
    assert right is not None and right.passed
    assert wrong is not None and wrong.permuted
    assert wrong.reordered == pytest.approx(right.loss)


def test_the_vocabulary_of_llama2c_and_of_gguf_encode_as_the_sentencepiece_model() -> None:
    model = load_tokenizer(shared("stories260K/tok512.model"))
    text = 'Once upon a time, Zoë said: "caf\u00e9 \U0001f600!"\n  Two  spaces.'
    from_gguf = checkpoints.find(shared("stories260K/stories260K-f32.gguf")).tokenizer
    assert from_gguf is not None
    for other in (load_tokenizer(shared("stories260K/tok512.bin")), from_gguf):
        np.testing.assert_array_equal(other.encode(text), model.encode(text))
        assert (other.bos_id, other.eos_id, other.decode(other.encode(text))) == (1, 2, text)


def test_tokenizer_json_gives_the_ids_of_the_package_however_the_text_is_cut() -> None:
    package = pytest.importorskip("tokenizers", reason="for want of tokenizers")
    path = shared("gptneox-shakespeare/tokenizer.json")
    ours, theirs = load_tokenizer(path), package.Tokenizer.from_file(str(path))
    text = (REAL / "corpora" / "tinyshakespeare.txt").read_text()[:30_000] + "  \u65e5\u672c <|endoftext|>"
    wanted = theirs.encode(text, add_special_tokens=False).ids
    pieces = [text[i : i + 777] for i in range(0, len(text), 777)]
    assert np.concatenate(list(ours.encode_stream(pieces))).tolist() == wanted
    assert ours.decode(wanted) == text.replace("<|endoftext|>", "")
    assert tokenizer_from_bytes(ours.to_bytes()).encode(text).tolist() == wanted


def test_the_command_says_what_it_made_and_checks_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "graph.bin"
    assert main.run(["convert", str(shared("stories260K/stories260K.bin")), "-o", str(out)]) == 0
    captured = capsys.readouterr()
    assert "llama from a llama2.c checkpoint, 260,032 parameters, tokenizer sentencepiece, 512 ids" in captured.out
    assert "checked: loss on plain English 0.48" in captured.err


# ---------------------------------------------------------------- checkpoints made here

LLAMA = llama.Config(n_vocab=11, n_embd=8, n_head=4, n_head_kv=2, n_layer=2, n_ff=12)
NEOX_SIZES = gpt_neox.Config(n_vocab=11, n_embd=16, n_head=2, n_layer=2, n_ff=20)
LLAMA_JSON = {
    "model_type": "llama", "vocab_size": 11, "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "intermediate_size": 12, "rms_norm_eps": 1e-5, "hidden_act": "silu",
}  # fmt: skip
NEOX_JSON = {
    "model_type": "gpt_neox", "vocab_size": 11, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2,
    "intermediate_size": 20, "layer_norm_eps": 1e-5, "hidden_act": "gelu",
}  # fmt: skip
SPELLINGS = {
    "transformers 4": {"rope_theta": 500.0, "rotary_emb_base": 500, "rotary_pct": 0.5},
    "transformers 5": {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5, "rope_type": "default"}},
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA_PAIRS = {
    "general.architecture": "llama", "llama.embedding_length": 8, "llama.block_count": 2, "llama.context_length": 32,
    "llama.feed_forward_length": 12, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.dimension_count": 2,
}  # fmt: skip


def weights(config: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Random weights of a model, by our names."""
    model = {llama.Config: llama, gpt2.Config: gpt2, mixtral.Config: mixtral}.get(type(config), gpt_neox)
    rng = np.random.default_rng(0)
    nodes = [node for node in trace(model.loss, config, ctx=4).nodes if node.initializer]
    return {node.name: rng.standard_normal(tuple(map(int, node.shape))).astype("<f4") for node in nodes}


def as_there(ours: ck.Arrays, known: naming.Format, config: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Our weights by their names and in their order of rows, several in one tensor where they have them so."""
    theirs: dict[str, np.ndarray[Any, Any]] = {}
    sizes: dict[str, int] = {}
    for name, array in ours.items():
        sizes[known.theirs(name)] = sizes.get(known.theirs(name), 0) + len(array)
    for name, array in ours.items():
        order, n = known.row_order(name), sizes[known.theirs(name)]
        index = np.arange(n) if order is None else order.index(n, vars(config))
        theirs.setdefault(known.theirs(name), np.zeros((n, *array.shape[1:]), array.dtype))[index] = array
    return theirs


def stored_weights(graph: Path) -> Mapping[str, np.ndarray[Any, Any]]:
    with Runtime(graph, threads=1, batch=1, ctx=4) as runtime:
        return {name: runtime.get(name) for name in runtime.params}


def assert_equal(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def write_folder(path: Path, config: Mapping[str, Any], arrays: ck.Arrays) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    ck.write_safetensors(path / "model.safetensors", arrays)
    return path


def llama_folder(path: Path, **changes: Any) -> Path:
    """A LLaMA as transformers would have written it; a change to None takes a key away."""
    config = {key: value for key, value in (LLAMA_JSON | changes).items() if value is not None}
    known = naming.formats("llama")["huggingface"]
    return write_folder(path, config, as_there(weights(LLAMA), known, LLAMA))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_a_folder_in_either_spelling_of_transformers_is_read(architecture: str, spelling: str, tmp_path: Path) -> None:
    config, keys = {"llama": (LLAMA, LLAMA_JSON), "gpt_neox": (NEOX_SIZES, NEOX_JSON)}[architecture]
    known = naming.formats(architecture)["huggingface"]
    folder = write_folder(tmp_path / "hf", keys | SPELLINGS[spelling], as_there(weights(config), known, config))
    source = checkpoints.find(folder)
    assert source.config["rope_freq_base"] == 500.0
    assert source.config.get("rotary_pct", 0.5) == 0.5
    assert_equal(stored_weights(converted(folder, tmp_path / "graph.bin")), weights(config))


def test_half_precision_weights_are_read_exactly(tmp_path: Path) -> None:
    known = naming.formats("llama")["huggingface"]
    halves = {name: array.astype("<f2") for name, array in weights(LLAMA).items()}
    folder = write_folder(tmp_path / "hf", LLAMA_JSON, as_there(halves, known, LLAMA))
    wanted = {name: array.astype(np.float32) for name, array in halves.items()}
    assert_equal(stored_weights(converted(folder, tmp_path / "graph.bin")), wanted)


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "hf")
    arrays = as_there(weights(LLAMA), naming.formats("llama")["huggingface"], LLAMA)
    (folder / "model.safetensors").unlink()
    names = list(arrays)
    parts = {"pytorch_model-1.bin": names[:5], "pytorch_model-2.bin": names[5:]}
    for file, held in parts.items():
        ck.write_torch(folder / file, {name: arrays[name] for name in held})
    table = {name: file for file, held in parts.items() for name in held}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))
    assert_equal(stored_weights(converted(folder, tmp_path / "graph.bin")), weights(LLAMA))


def test_a_gguf_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(ck.gguf_bytes(LLAMA_PAIRS, weights(LLAMA)))
    assert_equal(stored_weights(converted(tmp_path / "m.gguf", tmp_path / "graph.bin")), weights(LLAMA))


MIXTRAL = mixtral.Config(n_vocab=11, n_embd=8, n_head=4, n_layer=2, n_ff=12, n_expert=3)
MIXTRAL_JSON = LLAMA_JSON | {"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2}


def test_a_gguf_file_of_a_llama_with_experts_is_a_mixtral(tmp_path: Path) -> None:
    pairs = LLAMA_PAIRS | {"llama.expert_count": 3, "llama.expert_used_count": 2}
    (tmp_path / "m.gguf").write_bytes(ck.gguf_bytes(pairs, weights(MIXTRAL)))
    assert checkpoints.find(tmp_path / "m.gguf").architecture == "mixtral"
    assert_equal(stored_weights(converted(tmp_path / "m.gguf", tmp_path / "graph.bin")), weights(MIXTRAL))


def mixtral_tensors() -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a Mixtral as files have them, each expert's apart."""
    stacked = as_there(weights(MIXTRAL), naming.formats("mixtral")["huggingface"], MIXTRAL)
    apart = {name: array for name, array in stacked.items() if "{e}" not in name}
    for name, array in stacked.items():
        apart |= {name.replace("{e}", str(e)): array[e] for e in range(3)} if "{e}" in name else {}
    return apart


def test_experts_that_lie_apart_become_one_tensor(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", MIXTRAL_JSON, mixtral_tensors())
    assert_equal(stored_weights(converted(folder, tmp_path / "graph.bin")), weights(MIXTRAL))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("model.layers.1.block_sparse_moe.experts.0.w1.weight"), "experts.0.w1.weight is missing"),
        (lambda t: t.update({"model.layers.1.block_sparse_moe.experts.1.w1.weight": np.ones(3, "<f4")}), "do not fit"),
        (lambda t: t.pop("model.layers.1.block_sparse_moe.experts.2.w1.weight"), "of another shape"),
    ],
)
def test_experts_that_are_missing_or_do_not_fit_are_refused(
    change: Callable[[Any], None], reason: str, tmp_path: Path
) -> None:
    tensors = mixtral_tensors()
    change(tensors)
    folder = write_folder(tmp_path / "hf", MIXTRAL_JSON, tensors)
    with pytest.raises(FormatError, match=reason):
        converted(folder, tmp_path / "graph.bin")


def llama2c_bytes() -> bytes:
    ours = weights(LLAMA)
    order = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_down", "ffn_up"]
    names = ["token_embd", *[f"blk.{i}.{name}" for name in order for i in range(2)], "output_norm", "", "output"]
    angles = np.zeros(4 * 2, "<f4")
    body = b"".join((ours[f"{name}.weight"] if name else angles).tobytes() for name in names)
    return struct.pack("<7i", 8, 12, 2, 4, 2, -11, 4) + body


def test_a_llama2c_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(llama2c_bytes())
    assert_equal(stored_weights(converted(tmp_path / "m.bin", tmp_path / "graph.bin")), weights(LLAMA))


def later_llama2c_bytes(version: int, config: llama.Config, arrays: ck.Arrays, n_group: int = 0) -> bytes:
    """Versions 1, of float32, and 2, of 8-bit groups."""
    order = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up"]
    layers = range(config.n_layer)
    names = [f"blk.{i}.{name}" for name in ("attn_norm", "ffn_norm") for i in layers]
    names += ["output_norm", "token_embd", *[f"blk.{i}.{name}" for name in order for i in layers]]
    names += [] if config.tied else ["output"]
    sizes = (config.n_embd, config.n_ff, config.n_layer, config.n_head, config.n_head_kv, config.n_vocab, 512)
    head = struct.pack("<4si7iB", b"24ka", version, *sizes, config.tied)
    head += struct.pack("<i", n_group) if version == 2 else b""
    data = b""
    for name in names:
        array = arrays[f"{name}.weight"]
        if version == 2 and array.ndim == 2:
            groups = array.reshape(-1, n_group)
            factors = np.abs(groups).max(1, keepdims=True) / np.float32(127)
            data += np.round(groups / factors).astype("i1").tobytes() + factors.astype("<f4").tobytes()
        else:
            data += array.tobytes()
    return head.ljust(256, b"\0") + data


def test_a_llama2c_file_of_version_1_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(later_llama2c_bytes(1, LLAMA, weights(LLAMA)))
    assert_equal(stored_weights(converted(tmp_path / "m.bin", tmp_path / "graph.bin")), weights(LLAMA))


def test_a_llama2c_file_of_version_2_is_read_as_its_groups_say(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(later_llama2c_bytes(2, LLAMA, weights(LLAMA), 4))
    found = stored_weights(converted(tmp_path / "m.bin", tmp_path / "graph.bin"))
    for name, array in weights(LLAMA).items():
        groups = array.reshape(-1, 4)
        step = np.abs(groups).max(1, keepdims=True) / 127 if array.ndim == 2 else np.zeros(1)
        difference = np.abs(found[name].reshape(-1, 4) - groups)
        assert (difference <= step / 2 + 1e-6).all(), name
        assert array.ndim == 1 or difference.any()


NANOGPT = gpt2.Config(n_vocab=11, n_embd=16, n_head=2, n_layer=2, n_ctx=8, bias=False, exact_gelu=True)
NANOGPT_ARGS = {
    "vocab_size": 11,
    "n_embd": 16,
    "n_head": 2,
    "n_layer": 2,
    "block_size": 8,
    "bias": False,
    "dropout": 0.0,
}
LLAMA_TIED = replace(LLAMA, tied=True)
LLAMA_ARGS = {
    "vocab_size": 11,
    "dim": 8,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_layers": 2,
    "multiple_of": 4,
    "max_seq_len": 32,
}


def training_checkpoint(path: Path, arrays: ck.Arrays, arguments: dict[str, Any], twice: tuple[str, str]) -> Path:
    """A ckpt.pt of a compiled model, in which one tensor has two names; moments are 2 and 3 times the weights."""
    stored = {f"_orig_mod.{name}": array for name, array in arrays.items()}
    model = {
        name: ck.tensor(ck.storage(str(place), "FloatStorage", array.size), array.shape)
        for place, (name, array) in enumerate(stored.items())
    }
    model[f"_orig_mod.{twice[1]}"] = model[f"_orig_mod.{twice[0]}"]
    optimizer, moments = ck.adam(arrays, len(stored))
    entries = {"model": ck.dictionary(model), "optimizer": optimizer, "model_args": ck.plain(arguments)}
    entries["best_val_loss"] = ck.tensor(ck.storage("0", "FloatStorage", next(iter(stored.values())).size), ())
    return ck.write_torch(path, stored | moments, ck.pickled(ck.dictionary(entries)))


def assert_goes_on(source: Path, tmp_path: Path, ours: ck.Arrays, n_steps: int, *options: str) -> None:
    """The checkpoint beside the graph has these weights, twice them and three times them for moments; it is trained."""
    graph, kept = tmp_path / "graph.bin", tmp_path / "kept"
    made = ["convert", str(source), "--ctx", "4", "--batch", "1", "-o", str(graph), "--checkpoint", str(kept), *options]
    assert main.run(made) == 0
    with Runtime(graph, threads=1) as runtime:
        runtime.load(kept)
        found, moments = runtime.state()
        assert runtime.n_steps == n_steps
        assert_equal(found, ours)
        wanted = {f"{letter}.{name}": k * array for k, letter in ((2, "m"), (3, "v")) for name, array in ours.items()}
        assert_equal(moments, wanted)


def test_a_checkpoint_of_nanogpt_or_llama2c_brings_its_moments(tmp_path: Path) -> None:
    arrays = as_there(weights(NANOGPT), naming.formats("gpt2")["nanogpt"], NANOGPT)
    path = training_checkpoint(tmp_path / "a.pt", arrays, NANOGPT_ARGS, ("transformer.wte.weight", "lm_head.weight"))
    assert_goes_on(path, tmp_path, weights(NANOGPT), 7)


def trainer_folder(path: Path, n_groups: int = 2, **changes: Any) -> Path:
    """What transformers' Trainer keeps of a LLaMA: the folder of the model, and optimizer.pt."""
    folder, known = llama_folder(path), naming.formats("llama")["huggingface"]
    arrays = known.in_order(as_there(weights(LLAMA), known, LLAMA), LLAMA.n_layer)  # type: ignore[arg-type]
    state, stored = ck.adam(arrays, 0, n_groups, **changes)  # type: ignore[arg-type]
    ck.write_torch(folder / "optimizer.pt", stored, ck.pickled(state))
    return folder


@pytest.mark.parametrize("n_groups", [1, 2])
def test_a_folder_of_a_trainers_run_brings_its_moments(n_groups: int, tmp_path: Path) -> None:
    assert_goes_on(trainer_folder(tmp_path / "hf", n_groups), tmp_path, weights(LLAMA), 7)


def test_a_checkpoint_of_litgpts_training_brings_its_moments(tmp_path: Path) -> None:
    arrays = as_there(weights(LLAMA), naming.formats("llama")["litgpt"], LLAMA)
    optimizer, moments = ck.adam(arrays, len(arrays), 1)
    model = ck.dictionary(
        {n: ck.tensor(ck.storage(str(k), "FloatStorage", a.size), a.shape) for k, (n, a) in enumerate(arrays.items())}
    )
    folder = tmp_path / "lit"
    folder.mkdir()
    (folder / "model_config.yaml").write_text(LITGPT_LLAMA)
    entries = ck.pickled(ck.dictionary({"model": model, "optimizer": optimizer}))
    ck.write_torch(folder / "lit_model.pth", arrays | moments, entries)
    assert_goes_on(folder, tmp_path, weights(LLAMA), 7)


N_LLAMA = len(weights(LLAMA))
NO_STATES: dict[str, tuple[dict[str, Any], str]] = {
    "three groups": ({"n_groups": 3}, "3 groups"),
    "amsgrad": ({"amsgrad": True}, "amsgrad"),
    "another optimiser": ({"keys": ("momentum_buffer", "exp_avg")}, "not the state of Adam"),
    "steps that differ": ({"steps": [*range(1, N_LLAMA + 1)]}, "updated 1 to 21 times"),
    "no steps": ({"steps": [0] * N_LLAMA}, "step is 0"),
    "a step of text": ({"steps": ["7"] * N_LLAMA}, "step is '7'"),
    "numbers that are none": ({"params": 3}, "without numbers"),
    "other numbers": ({"params": [1, 2]}, "the state of 2 parameters"),
    "a number that is not there": ({"params": [99]}, "the state of 1 parameters"),
}


@pytest.mark.parametrize("what", NO_STATES)
def test_an_optimisers_state_that_is_not_the_models_is_refused(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, reason = NO_STATES[what]
    folder = trainer_folder(tmp_path / "hf", **changes)
    assert (
        main.run(["convert", str(folder), "-o", str(tmp_path / "g.bin"), "--checkpoint", str(tmp_path / "kept")]) == 1
    )
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()


def test_moments_in_another_order_are_refused(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "hf")
    arrays = as_there(weights(LLAMA), naming.formats("llama")["huggingface"], LLAMA)
    state, stored = ck.adam(dict(reversed(arrays.items())), 0)
    ck.write_torch(folder / "optimizer.pt", stored, ck.pickled(state))
    moments = checkpoints.find(folder).moments
    assert moments is not None
    with pytest.raises(FormatError, match=r"where exp_avg of .* should be"):
        moments()


def test_moments_of_experts_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", MIXTRAL_JSON, mixtral_tensors())
    (trainer_folder(tmp_path / "other") / "optimizer.pt").rename(folder / "optimizer.pt")
    moments = checkpoints.find(folder).moments
    assert moments is not None
    with pytest.raises(UnsupportedError, match="order mixtral has its parameters"):
        moments()


def test_a_run_begun_elsewhere_goes_on_with_its_moments(tmp_path: Path) -> None:
    config = replace(NANOGPT, n_vocab=256)
    positive = {name: np.abs(array) / 4 for name, array in weights(config).items()}  # as second moments are
    arrays = as_there(positive, naming.formats("gpt2")["nanogpt"], config)
    arguments = NANOGPT_ARGS | {"vocab_size": 256}
    path = training_checkpoint(tmp_path / "a.pt", arrays, arguments, ("transformer.wte.weight", "lm_head.weight"))
    graph, kept, run = (str(tmp_path / name) for name in ("graph.bin", "kept", "run"))
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    assert main.run(["convert", str(path), "--ctx", "8", "-o", graph, "--checkpoint", kept]) == 0
    training = ["--data", str(tmp_path / "text.txt"), "--steps", "2", "--batch", "2", "--predict", "0", "-o", run]
    assert main.run(["train", graph, "--init-from", kept, *training]) == 0
    with Runtime(graph, threads=1) as runtime:
        runtime.load(Path(run) / "step_000002")
        assert runtime.n_steps == 9


# ---------------------------------------------------------------- llama.cpp's old trainer

TRAINED = llama.Config(n_vocab=11, n_embd=8, n_head=4, n_head_kv=4, n_layer=2, n_ff=24, norm_eps=1e-6)
TRAINED_SIZES = struct.pack("<6I", 11, 8, 8, 4, 2, 2)
LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_down", "ffn_up")


def old_tensor(at: int, array: np.ndarray[Any, Any], name: bytes = b"x") -> bytes:
    kind = {"<f4": 0, "<f2": 1}[array.dtype.str]
    head = struct.pack(f"<3I{array.ndim}I", array.ndim, len(name), kind, *reversed(array.shape)) + name
    return head + b"\0" * (-(at + len(head)) % 32) + array.tobytes()


def old_checkpoint() -> bytes:
    """A ggcp file."""
    ours = weights(TRAINED)
    data = struct.pack("<5I", 0x67676370, 0, 9, 9, 9) + TRAINED_SIZES
    for name in ("token_embd", "output_norm", "output", *(f"blk.{i}.{name}" for i in range(2) for name in LAYER)):
        data += old_tensor(len(data), ours[f"{name}.weight"])
    layer = (*LAYER[:6], "ffn_up", "ffn_gate", "ffn_down")
    order = ["token_embd", *(f"blk.{i}.{name}" for i in range(2) for name in layer), "output_norm", "output"]
    flat = np.concatenate([ours[f"{name}.weight"].reshape(-1) for name in order])
    data += struct.pack("<I", 0) + bytes(96) + struct.pack("<qiI", flat.size, 5, 0)
    for scale in (1, 0, 0, 2, 3, 0, 0):
        data += old_tensor(len(data), np.float32(scale) * flat)
    head = bytes(12)
    return data + head + b"\0" * (-(len(data) + 12) % 32) + bytes(12)


def test_a_ggcp_checkpoint_brings_its_moments(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.dat").write_bytes(old_checkpoint())
    assert_goes_on(tmp_path / "checkpoint.dat", tmp_path, weights(TRAINED), 5)


@pytest.mark.parametrize("version", [1, 3])
def test_a_ggjt_model_is_read(version: int, tmp_path: Path) -> None:
    halves = {name: array.astype("<f2") if array.ndim > 1 else array for name, array in weights(TRAINED).items()}
    data = struct.pack("<2I", 0x67676A74, version) + TRAINED_SIZES + struct.pack("<I", 1)
    data += b"".join(struct.pack("<I", 2) + b"ab" + struct.pack("<f", 0.0) for _ in range(11))
    for theirs, ours in {known.partition(".weight")[0]: known for known in halves}.items():
        layer = theirs.removeprefix("blk.").partition(".")
        names = {v: k for k, v in ggml.NAMES.items()}
        name = f"layers.{layer[0]}.{names[layer[2]]}.weight" if theirs.startswith("blk.") else f"{names[theirs]}.weight"
        data += old_tensor(len(data), halves[ours], name.encode())
    (tmp_path / "m.bin").write_bytes(data)
    wanted = {name: array.astype(np.float32) for name, array in halves.items()}
    assert_equal(stored_weights(converted(tmp_path / "m.bin", tmp_path / "graph.bin")), wanted)


TRAINED_PAIRS = LLAMA_PAIRS | {
    "llama.feed_forward_length": 24, "llama.attention.head_count_kv": 4, "training.type": "train_model",
    "optimizer.type": "adam", "optimizer.iteration_count": 6,
}  # fmt: skip
ORDER_0 = (  # of two layers, as the trainer's graph was replayed
    "output output_norm blk.1.ffn_down blk.1.ffn_gate blk.1.ffn_norm blk.1.attn_output blk.1.attn_norm blk.0.ffn_down "
    "blk.0.ffn_gate blk.0.ffn_norm blk.0.attn_output blk.0.attn_norm token_embd blk.0.attn_v blk.0.attn_k blk.0.attn_q "
    "blk.0.ffn_up blk.1.attn_v blk.1.attn_k blk.1.attn_q blk.1.ffn_up"
)


@pytest.mark.parametrize("order", ggml.ORDERS)
def test_a_gguf_checkpoint_of_a_training_run_brings_its_moments_in_the_order_given(order: str, tmp_path: Path) -> None:
    ours = weights(TRAINED)
    names = ggml.ordered(order, 2)
    assert sorted(names) == sorted(ours)
    assert order != "left-to-right" or names == [f"{name}.weight" for name in ORDER_0.split()]
    flat = np.concatenate([ours[name].reshape(-1) for name in names])
    state = {"optimizer.adam.first_moments": 2 * flat, "optimizer.adam.second_moments": 3 * flat}
    (tmp_path / "m.gguf").write_bytes(ck.gguf_bytes(TRAINED_PAIRS, {**ours, **state}))
    assert_goes_on(tmp_path / "m.gguf", tmp_path, ours, 6, "--moment-order", order)


def test_a_checkpoint_without_optimisers_state_keeps_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, kept = llama_folder(tmp_path / "hf"), tmp_path / "kept"
    assert main.run(["convert", str(folder), "-o", str(tmp_path / "g.bin"), "--checkpoint", str(kept)]) == 2
    assert "without optimiser's state" in capsys.readouterr().err
    assert not kept.exists()


def test_a_nanogpt_checkpoint_is_read(tmp_path: Path) -> None:
    arrays = as_there(weights(NANOGPT), naming.formats("gpt2")["nanogpt"], NANOGPT)
    twice = ("transformer.wte.weight", "lm_head.weight")
    path = training_checkpoint(tmp_path / "ckpt.pt", arrays, NANOGPT_ARGS, twice)
    source = checkpoints.find(path)
    assert source.config | {"n_ff": 0} == vars(NANOGPT)
    assert_equal(stored_weights(converted(path, tmp_path / "graph.bin", ctx=8)), weights(NANOGPT))


def test_a_training_checkpoint_of_llama2c_is_read(tmp_path: Path) -> None:
    arrays = as_there(weights(LLAMA_TIED), naming.formats("llama")["meta"], LLAMA_TIED)
    twice = ("tok_embeddings.weight", "output.weight")
    path = training_checkpoint(tmp_path / "ckpt.pt", arrays, LLAMA_ARGS, twice)
    assert_equal(stored_weights(converted(path, tmp_path / "graph.bin")), weights(LLAMA_TIED))


LIT_LLAMA = llama.Config(n_vocab=11, n_embd=8, n_head=4, n_head_kv=4, n_layer=2, n_ff=12)
LITGPT_LLAMA = """\
bias: false
hf_config:
  name: x
  org: y
intermediate_size: 12
mlp_class_name: LLaMAMLP
n_embd: 8
n_head: 4
n_layer: 2
n_query_groups: 2
name: ''
norm_class_name: RMSNorm
norm_eps: 1.0e-05
padded_vocab_size: 11
parallel_residual: false
rope_adjustments: null
rope_base: 500
rotary_percentage: 1.0
"""
LITGPT_NEOX = {
    "mlp_class_name": "GptNeoxMLP", "norm_class_name": "LayerNorm", "n_embd": 16, "n_head": 2, "n_layer": 2,
    "intermediate_size": 20, "norm_eps": 1e-5, "padded_vocab_size": 11, "parallel_residual": True, "bias": True,
    "rotary_percentage": 0.25,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["litgpt", "litgpt, grouped"])
def test_a_litgpt_folder_is_read_in_both_orders_of_its_fused_matrix(kind: str, tmp_path: Path) -> None:
    (tmp_path / "model_config.yaml").write_text(LITGPT_LLAMA)
    ck.write_torch(tmp_path / "lit_model.pth", as_there(weights(LLAMA), naming.formats("llama")[kind], LLAMA))
    assert checkpoints.find(tmp_path).config["rope_freq_base"] == 500
    assert_equal(stored_weights(converted(tmp_path, tmp_path / "graph.bin")), weights(LLAMA))
    (tmp_path / "model_config.yaml").unlink()
    (tmp_path / "lit_config.json").write_text(json.dumps(LITGPT_NEOX))
    known = naming.formats("gpt_neox")[kind]
    ck.write_torch(tmp_path / "lit_model.pth", as_there(weights(NEOX_SIZES), known, NEOX_SIZES))
    assert_equal(stored_weights(converted(tmp_path / "lit_model.pth", tmp_path / "neox.bin")), weights(NEOX_SIZES))


LIT_LLAMA3 = "  factor: 8.0\n  low_freq_factor: 1.0\n  high_freq_factor: 4.0\n  original_max_seq_len: 8192"
LIT_SCALINGS = {
    f"rope_adjustments:\n{LIT_LLAMA3}": ("llama3", 8.0, 8192, 4.0),
    "rope_adjustments:\n  factor: 8.0": ("linear", 8.0, 0, 32.0),
    "rope_condense_ratio: 4": ("linear", 4, 0, 32.0),
    "rope_condense_ratio: 1": ("", 1.0, 0, 32.0),
}
SCALING = ("rope_scaling", "rope_factor", "rope_n_ctx_orig", "rope_beta_fast")


@pytest.mark.parametrize("lines", LIT_SCALINGS)
def test_scaled_positions_of_litgpt_are_read(lines: str, tmp_path: Path) -> None:
    kept = [line for line in LITGPT_LLAMA.splitlines() if not line.startswith("rope_adjustments")]
    (tmp_path / "model_config.yaml").write_text("\n".join([*kept, lines]) + "\n")
    ck.write_torch(tmp_path / "lit_model.pth", as_there(weights(LLAMA), naming.formats("llama")["litgpt"], LLAMA))
    assert tuple(checkpoints.find(tmp_path).config[field] for field in SCALING) == LIT_SCALINGS[lines]
    converted(tmp_path, tmp_path / "graph.bin")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("rope_adjustments:\n  factor: 8.0\n  beta_fast: 32.0", "rope_adjustments"),
        ("rope_adjustments: 8.0", "rope_adjustments"),
        ("rope_adjustments:\n  factor: 8.0\nrope_condense_ratio: 2", "rope_condense_ratio"),
        ("rope_adjustments:\n  factor 8.0", "KEY: VALUE"),
        ("  factor: 8.0", "KEY: VALUE"),
        ("sliding_window_size: 16", "sliding_window_size"),
        ("scale_embeddings: true", "scale_embeddings"),
        ("mlp_class_name: LLaMAMoE", "LLaMAMoE"),
        ("a line", "KEY: VALUE"),
    ],
)
def test_a_litgpt_configuration_that_is_not_our_model_is_refused(line: str, reason: str, tmp_path: Path) -> None:
    key = line.partition(":")[0] + ":"
    kept = [other for other in LITGPT_LLAMA.splitlines() if not other.startswith(key)]
    (tmp_path / "model_config.yaml").write_text("\n".join([*kept, line]) + "\n")
    ck.write_torch(tmp_path / "lit_model.pth", as_there(weights(LLAMA), naming.formats("llama")["litgpt"], LLAMA))
    with pytest.raises(GGError, match=reason):
        checkpoints.find(tmp_path)


def test_scaled_positions_of_metas_checkpoints_are_llama_3s_when_their_factor_is_given(tmp_path: Path) -> None:
    arrays = as_there(weights(LLAMA), naming.formats("llama")["meta"], LLAMA)
    ck.write_torch(tmp_path / "consolidated.00.pth", arrays)
    params = {"dim": 8, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "norm_eps": 1e-5, "vocab_size": 11}
    (tmp_path / "params.json").write_text(json.dumps(params | {"use_scaled_rope": True}))
    with pytest.raises(FormatError, match="give rope_factor="):
        checkpoints.find(tmp_path)
    config = checkpoints.find(tmp_path, {"rope_factor": 8.0}).config
    assert tuple(config[field] for field in SCALING) == ("llama3", 8.0, 8192, 4.0)


def test_a_lit_llama_file_is_read_when_the_number_of_heads_is_given(tmp_path: Path) -> None:
    known = naming.formats("llama")["lit-llama"]
    path = ck.write_torch(tmp_path / "lit-llama.pth", as_there(weights(LIT_LLAMA), known, LIT_LLAMA))
    with pytest.raises(FormatError, match="give n_head="):
        checkpoints.find(path)
    assert main.run(["convert", str(path), "n_head=4", "n_head_kv=4", "-o", str(tmp_path / "graph.bin")]) == 0
    assert_equal(stored_weights(tmp_path / "graph.bin"), weights(LIT_LLAMA))


@pytest.mark.parametrize("rows_of_tokens", [False, True])
def test_a_meta_checkpoint_in_several_files_is_put_together(rows_of_tokens: bool, tmp_path: Path) -> None:
    whole = as_there(weights(LLAMA_TIED), naming.formats("llama")["meta"], LLAMA_TIED)
    tokens = whole["tok_embeddings.weight"]
    if rows_of_tokens:
        whole["tok_embeddings.weight"] = np.vstack([tokens, tokens[:1]])  # an even number of rows
    for part in range(2):
        halves = {}
        for name, array in whole.items():
            by_columns = name.endswith(("wo.weight", "w2.weight")) or (name.startswith("tok") and not rows_of_tokens)
            axis = 1 if by_columns else 0
            halves[name] = array if array.ndim < 2 else np.ascontiguousarray(np.split(array, 2, axis)[part])
        ck.write_torch(tmp_path / f"consolidated.0{part}.pth", halves)
    params = {"dim": 8, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "norm_eps": 1e-5, "vocab_size": -1}
    (tmp_path / "params.json").write_text(json.dumps(params))
    found = stored_weights(converted(tmp_path, tmp_path / "graph.bin"))
    assert_equal({k: v[:11] if k == "token_embd.weight" else v for k, v in found.items()}, weights(LLAMA_TIED))


def test_parts_of_a_meta_checkpoint_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    whole = as_there(weights(LLAMA), naming.formats("llama")["meta"], LLAMA)
    for part in range(2):
        ck.write_torch(tmp_path / f"consolidated.0{part}.pth", whole)
        whole = {name: array[:, :4].copy() if name.endswith("wq.weight") else array for name, array in whole.items()}
    (tmp_path / "params.json").write_text(json.dumps({"dim": 8, "n_heads": 4, "n_layers": 2, "norm_eps": 1e-5}))
    with pytest.raises(FormatError, match="do not fit"):
        checkpoints.find(tmp_path)


SIZES = ("n_vocab", "n_embd", "n_head", "n_head_kv", "n_layer", "n_ff")


@pytest.mark.parametrize("kind", ["huggingface", "meta", "gguf"])
def test_tensors_alone_are_read_as_those_of_a_named_model(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    ck.write_safetensors(path, as_there(weights(LLAMA), naming.formats("llama")[kind], LLAMA))
    fields = [
        f"{name}={getattr(LLAMA, name)}" for name in ("n_vocab", "n_embd", "n_head", "n_head_kv", "n_layer", "n_ff")
    ]
    out = tmp_path / "graph.bin"
    assert main.run(["convert", str(path), "--model", "llama", *fields, "-o", str(out)]) == 0
    assert_equal(stored_weights(out), weights(LLAMA))


def test_tensors_alone_may_be_of_a_model_in_a_users_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from ggmlgraph.models.llama import Config, loss as other\ndef loss(p, tokens, targets, c: Config):\n"
        "    return other(p, tokens, targets, c)\n"
    )
    ck.write_safetensors(tmp_path / "m.safetensors", weights(LLAMA))
    fields = [
        f"{name}={getattr(LLAMA, name)}" for name in ("n_vocab", "n_embd", "n_head", "n_head_kv", "n_layer", "n_ff")
    ]
    model, out = f"{tmp_path / 'mine.py'}:loss", tmp_path / "graph.bin"
    assert main.run(["convert", str(tmp_path / "m.safetensors"), "--model", model, *fields, "-o", str(out)]) == 0
    assert_equal(stored_weights(out), weights(LLAMA))


def test_a_base_model_without_head_is_read_with_its_names(tmp_path: Path) -> None:
    arrays = as_there(weights(LLAMA_TIED), naming.formats("llama")["huggingface"], LLAMA_TIED)
    bare = {name.removeprefix("model."): array for name, array in arrays.items()}
    folder = write_folder(tmp_path / "hf", LLAMA_JSON | {"tie_word_embeddings": True}, bare)
    assert_equal(stored_weights(converted(folder, tmp_path / "graph.bin")), weights(LLAMA_TIED))


def test_what_is_no_weight_is_skipped_by_name(tmp_path: Path) -> None:
    known = naming.formats("gpt_neox")["huggingface"]
    arrays = as_there(weights(NEOX_SIZES), known, NEOX_SIZES)
    arrays["gpt_neox.layers.0.attention.masked_bias"] = np.float32([-1e9])
    folder = write_folder(tmp_path / "hf", NEOX_JSON, arrays)
    assert_equal(stored_weights(converted(folder, tmp_path / "graph.bin")), weights(NEOX_SIZES))


def test_a_checkpoint_without_tokenizer_is_converted_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = llama_folder(tmp_path / "hf", max_position_embeddings=32)
    assert main.run(["convert", str(folder), "-o", str(tmp_path / "graph.bin")]) == 0
    captured = capsys.readouterr()
    assert "no tokenizer" in captured.out
    assert "--tokenizer" in captured.err
    with Runtime(tmp_path / "graph.bin", threads=1) as runtime:
        assert runtime.window == (16, 32)


def test_weights_that_know_nothing_are_told_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = spm.SpmModel(["<unk>", "<s>", "</s>", *"abcdefgh"], [0.0] * 11, [2, 3, 3] + [1] * 8, spm.BPE)
    (tmp_path / "t.model").write_bytes(spm.write(model))
    arguments = ["convert", str(llama_folder(tmp_path / "hf")), "-o", str(tmp_path / "graph.bin")]
    assert main.run([*arguments, "--tokenizer", str(tmp_path / "t.model")]) == 0
    assert "WARNING" in capsys.readouterr().err


def test_a_tokenizer_with_too_many_ids_is_refused(tmp_path: Path) -> None:
    source = checkpoints.find(llama_folder(tmp_path / "hf"))
    with pytest.raises(DataError, match="256 ids"):
        convert.convert(source, tmp_path / "g.bin", batch=1, ctx=4, tokenizer=BytesTokenizer())
    assert not (tmp_path / "g.bin").exists()


# ---------------------------------------------------------------- refused


def test_missing_unknown_and_misshaped_tensors_are_listed_in_one_error(tmp_path: Path) -> None:
    arrays = as_there(weights(LLAMA), naming.formats("llama")["huggingface"], LLAMA)
    del arrays["model.norm.weight"]
    arrays["model.extra.weight"] = np.zeros(3, "<f4")
    arrays["lm_head.weight"] = np.zeros((11, 9), "<f4")
    folder = write_folder(tmp_path / "hf", LLAMA_JSON, arrays)
    with pytest.raises(FormatError) as caught:
        converted(folder, tmp_path / "graph.bin")
    for part in (
        "model.norm.weight missing",
        "model.extra.weight unknown",
        "lm_head.weight [11, 9] instead of [11, 8] of another shape",
    ):
        assert part in str(caught.value)
    assert not (tmp_path / "graph.bin").exists()


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"model_type": "mamba"}, UnsupportedError, "mamba"),
        ({"model_type": None}, UnsupportedError, "architecture"),
        ({"hidden_act": "relu"}, UnsupportedError, "relu"),
        ({"attention_bias": True}, FormatError, "self_attn.q_proj.bias"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, UnsupportedError, "dynamic"),
        ({"rope_scaling": {"type": ["yarn"]}}, UnsupportedError, "rope_scaling.type is"),
        ({"rope_parameters": {"rope_type": "llama3"}}, FormatError, "rope_factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, UsageError, "rope_factor"),
        ({"rope_parameters": YARN | {"factor": "2"}}, FormatError, "rope_"),
        ({"rope_parameters": YARN | {"truncate": False}}, UnsupportedError, "truncate"),
        ({"rope_parameters": YARN | {"original_max_position_embeddings": -1}}, FormatError, "rope_n_ctx_orig"),
        ({"rope_parameters": YARN | {"beta_fast": 1}}, UsageError, "rope_beta_slow < rope_beta_fast"),
        ({"rms_norm_eps": None}, FormatError, "norm_eps"),
        ({"rms_norm_eps": "small"}, FormatError, "norm_eps"),
        ({"num_hidden_layers": 10**9}, FormatError, "layers"),
        ({"num_hidden_layers": -1}, FormatError, "n_layer"),
        ({"vocab_size": 10**12}, FormatError, "n_vocab"),
        ({"num_attention_heads": 3}, FormatError, "n_head"),
        ({"num_attention_heads": 2}, FormatError, "another shape"),
        ({"hidden_size": True}, FormatError, "n_embd"),
        ({"tie_word_embeddings": "yes"}, FormatError, "tied"),
    ],
)
def test_a_configuration_that_is_not_our_model_is_refused(
    changes: dict[str, Any], error: type[GGError], reason: str, tmp_path: Path
) -> None:
    folder = llama_folder(tmp_path / "hf", **changes)
    with pytest.raises(error, match=reason):
        converted(folder, tmp_path / "graph.bin")
    assert not (tmp_path / "graph.bin").exists()


ARRAYS = {"a": np.zeros((2, 3), "<f4"), "b": np.zeros(4, "<f4")}
SAFETENSORS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a gap": lambda h: h | {"b": h["b"] | {"data_offsets": [28, 40]}},
    "an overlap": lambda h: h | {"b": h["b"] | {"data_offsets": [20, 36]}},
    "an end beyond the file": lambda h: h | {"b": h["b"] | {"shape": [5], "data_offsets": [24, 44]}},
    "a shape of another size": lambda h: h | {"b": h["b"] | {"shape": [5]}},
    "a huge shape": lambda h: h | {"b": h["b"] | {"shape": [1 << 40, 1 << 40]}},
    "a negative size": lambda h: h | {"b": h["b"] | {"shape": [-4]}},
    "a fractional size": lambda h: h | {"b": h["b"] | {"shape": [4.0]}},
    "a boolean size": lambda h: h | {"b": h["b"] | {"shape": [True]}},
    "an unknown type": lambda h: h | {"b": h["b"] | {"dtype": "F4"}},
    "an unknown key": lambda h: h | {"b": h["b"] | {"x": 1}},
    "offsets backwards": lambda h: h | {"b": h["b"] | {"data_offsets": [40, 24]}},
    "one tensor too few": lambda h: {"a": h["a"]},
    "a list": lambda h: [h],
}
RAW = {
    "a name twice": b"{" + b",".join([b'"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}'] * 2) + b"}",
    "deep JSON": b'{"a":' + b"[" * 200_000,
    "no JSON": b"{]",
    "bytes that are not UTF-8": b'{"\xff":1}',
}


def safetensors_files() -> Iterator[tuple[str, bytes]]:
    data = b"".join(a.tobytes() for a in ARRAYS.values())
    for name, change in SAFETENSORS.items():
        raw = json.dumps(change(ck.safetensors_header(ARRAYS))).encode()
        yield f"safetensors: {name}", struct.pack("<Q", len(raw)) + raw + data
    for name, raw in RAW.items():
        yield f"safetensors: {name}", struct.pack("<Q", len(raw)) + raw + data
    yield "safetensors: a header larger than the file", struct.pack("<Q", 1 << 40) + b"{}"
    yield "safetensors: an empty file", b""


def gguf_files() -> Iterator[tuple[str, bytes]]:
    good = ck.gguf_bytes(LLAMA_PAIRS, ARRAYS)
    key = ck.gguf_string(b"general.architecture")
    head = b"GGUF" + struct.pack("<I", 3)
    one = head + struct.pack("<QQ", 1, 0)
    yield "cut off", good[:-40]
    yield "cut off in the header", good[:60]
    yield "more at the end", good + bytes(64)
    yield "version 1", b"GGUF" + struct.pack("<I", 1) + good[8:]
    yield "big-endian", b"GGUF" + struct.pack(">I", 3) + good[8:]
    yield "countless tensors", head + struct.pack("<QQ", 1 << 60, 0)
    yield "countless keys", head + struct.pack("<QQ", 0, 1 << 60)
    yield "a long key", head + struct.pack("<QQQ", 0, 1, 1 << 62)
    yield "a key twice", head + struct.pack("<QQ", 0, 2) + (key + ck.gguf_value(1)) * 2
    yield "an unknown type", head + struct.pack("<QQ", 0, 1) + key + struct.pack("<I", 99)
    yield "an array in an array", head + struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQI", 9, 9, 1, 4)
    yield "a huge array", head + struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 10, 1 << 61)
    yield "an array of many strings", head + struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 8, 1 << 20)
    yield "a boolean of 2", head + struct.pack("<QQ", 0, 1) + key + struct.pack("<IB", 7, 2)
    yield "an alignment of 0", ck.gguf_bytes({"general.alignment": 0}, ARRAYS)
    yield "an alignment of 3", ck.gguf_bytes({"general.alignment": 3}, ARRAYS)
    yield "an alignment of text", ck.gguf_bytes({"general.alignment": "32"}, ARRAYS)
    yield "many axes", one + ck.gguf_info("a", (1,) * 9, 0, 0)
    yield "a shape that overflows", one + ck.gguf_info("a", (1 << 33, 1 << 33), 0, 0)
    yield "a quantised tensor", one + ck.gguf_info("a", (32,), 2, 0)
    yield "a tensor of no type", one + ck.gguf_info("a", (1,), 77, 0)
    yield "a tensor elsewhere", one + ck.gguf_info("a", (1,), 0, 32) + bytes(256)
    yield "a tensor twice", head + struct.pack("<QQ", 2, 0) + ck.gguf_info("a", (8,), 0, 0) * 2 + bytes(256)
    yield "no architecture", ck.gguf_bytes({}, ARRAYS)
    yield "another architecture", ck.gguf_bytes({"general.architecture": "mamba"}, ARRAYS)
    yield "scaled positions", ck.gguf_bytes(LLAMA_PAIRS | {"llama.rope.scaling.type": "longrope"}, weights(LLAMA))
    yarn = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    yield "YaRN of what context", ck.gguf_bytes(LLAMA_PAIRS | yarn, weights(LLAMA))
    yield (
        "another YaRN",
        ck.gguf_bytes(LLAMA_PAIRS | yarn | {"llama.rope.scaling.yarn_log_multiplier": 0.1}, weights(LLAMA)),
    )
    for name, factors in {
        "too many": np.ones(3, "<f4"),
        "infinite": np.array([np.inf], "<f4"),
        "others": 3 * np.ones(1, "<f4"),
    }.items():
        yield f"{name} frequency factors", ck.gguf_bytes(LLAMA_PAIRS, weights(LLAMA) | {"rope_freqs.weight": factors})
    yield (
        "frequency factors in a square",
        ck.gguf_bytes(LLAMA_PAIRS, weights(LLAMA) | {"rope_freqs.weight": np.ones((1, 1), "<f4")}),
    )
    yield "half a rotation", ck.gguf_bytes(LLAMA_PAIRS | {"llama.rope.dimension_count": 1}, weights(LLAMA))
    yield "tensors of nothing", ck.gguf_bytes(LLAMA_PAIRS, ARRAYS)


def llama2c_files() -> Iterator[tuple[str, bytes]]:
    good = llama2c_bytes()
    yield "cut off", good[:-4]
    yield "more at the end", good + bytes(4)
    yield "negative layers", struct.pack("<7i", 8, 12, -2, 4, 2, -11, 4) + good[28:]
    yield "countless layers", struct.pack("<7i", 8, 12, 1 << 30, 4, 2, -11, 4) + good[28:]
    yield "no heads", struct.pack("<7i", 8, 12, 2, 0, 2, -11, 4) + good[28:]
    later = struct.pack("<4s", b"24ka")
    yield "version 3", later + struct.pack("<i7iBi", 3, 8, 12, 2, 4, 2, 11, 4, 1, 4).ljust(252, b"\0")
    for n_group in (0, -4, 7, 1 << 30):
        version_2 = struct.pack("<i7iBi", 2, 8, 12, 2, 4, 2, 11, 4, 0, n_group).ljust(252, b"\0")
        yield f"version 2 with groups of {n_group}", later + version_2 + bytes(4000)
    yield "version 2 cut off", later_llama2c_bytes(2, LLAMA, weights(LLAMA), 4)[:-1]
    yield (
        "version 2 with factors that are infinite",
        later_llama2c_bytes(2, LLAMA, weights(LLAMA), 4)[:-4] + b"\0\0\x80\x7f",
    )
    yield "version 1 without tensors", struct.pack("<Ii7iB", 0x616B3432, 1, 8, 12, 2, 4, 2, 11, 4, 1).ljust(256, b"\0")
    yield "version 1 of nothing", struct.pack("<Ii", 0x616B3432, 1) + bytes(248)
    yield "version 1 cut off", struct.pack("<Ii", 0x616B3432, 1) + bytes(24)


def old_files() -> Iterator[tuple[str, bytes]]:
    good, sizes = old_checkpoint(), slice(20, 44)
    yield "cut off", good[:-4]
    yield "cut off in a tensor", good[:300]
    yield "more at the end", good + bytes(4)
    yield "another version", good[:4] + struct.pack("<I", 1) + good[8:]
    yield "countless layers", good[:36] + struct.pack("<I", 1 << 23) + good[40:]
    yield "a vocabulary beyond all", good[:20] + struct.pack("<I", 1 << 31) + good[24:]
    yield "no heads", good[:32] + struct.pack("<I", 0) + good[36:]
    yield "half a rotation", good[:40] + struct.pack("<I", 1) + good[44:]
    yield "a tensor of another shape", good[:24] + struct.pack("<I", 12) + good[28:]
    yield "another optimiser", good.replace(bytes(100) + struct.pack("<q", 0), b"", 1)[:-8]
    model = struct.pack("<2I", 0x67676A74, 3) + good[sizes] + struct.pack("<I", 0)
    yield "a model without vocabulary", model
    yield "a model of version 9", struct.pack("<2I", 0x67676A74, 9) + good[sizes]
    yield "a piece beyond all", model + struct.pack("<I", 1 << 31)
    model += bytes(8 * 11)  # a vocabulary of empty pieces
    yield "a tensor that is quantised", model + struct.pack("<5I", 2, 1, 2, 32, 32) + b"x"
    yield "a tensor beyond the end", model + struct.pack("<4I", 1, 1, 0, 1 << 31)


HOSTILE = {
    **{f"old trainer: {name}": ("m.dat", data) for name, data in old_files()},
    **{name: ("model.safetensors", data) for name, data in safetensors_files()},
    **{f"GGUF: {name}": ("m.gguf", data) for name, data in gguf_files()},
    **{f"llama2.c: {name}": ("m.bin", data) for name, data in llama2c_files()},
    "text": ("m.bin", b"hello, world, this is no checkpoint of anything"),
}


MOST_KIB = 256 << 10  # that reading a file of some kilobytes may take


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_one_line_and_leaves_nothing(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, data = HOSTILE[what]
    (tmp_path / file).write_bytes(data)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_JSON))
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main.run(["convert", str(tmp_path / file), "-o", str(tmp_path / "graph.bin")]) in (1, 2)
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KIB
    errors = capsys.readouterr().err
    assert errors.startswith("ggmlgraph: error: ")
    assert errors.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["config.json", file])


INDEXES = {
    "a path outside": {"weight_map": {"a": "../model.safetensors"}},
    "an absolute path": {"weight_map": {"a": "/etc/passwd"}},
    "a missing shard": {"weight_map": {"a": "model-1.safetensors"}},
    "no map": {"weight_map": ["a"]},
    "no names": {"weight_map": {"a": 1}},
    "a tensor that is elsewhere": {"weight_map": {"z": "shard.safetensors"}},
}


@pytest.mark.parametrize("what", INDEXES)
def test_a_hostile_index_is_refused(what: str, tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "hf")
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(INDEXES[what]))
    with pytest.raises(GGError) as caught:
        checkpoints.find(folder)
    assert "\n" not in str(caught.value)


def test_deep_json_is_refused(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "hf")
    (folder / "config.json").write_text('{"a":' + "[" * 200_000)
    with pytest.raises(FormatError):
        checkpoints.find(folder)


@pytest.mark.parametrize("content", [{}, {"config.json": "{}"}, {"params.json": "{}"}])
def test_a_folder_without_checkpoint_is_refused(content: dict[str, str], tmp_path: Path) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError):
        checkpoints.find(tmp_path)


TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
    "decoder": {"type": "ByteLevel"},
    "pre_tokenizer": {"type": "ByteLevel"},
}
TOKENIZERS = {
    "ids that repeat": {"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}}},
    "an id beyond all": {"model": {"type": "BPE", "vocab": {"a": 1 << 40}}},
    "a negative id": {"model": {"type": "BPE", "vocab": {"a": -1}}},
    "no tokens": {"model": {"type": "BPE", "vocab": {}}},
    "a prefix that merges do not have": {
        "model": {
            "type": "BPE",
            "vocab": {"a": 0, "\u00e9": 1, "a\u00e9": 2},
            "merges": [["a", "\u00e9"]],
            "continuing_subword_prefix": "x",
        },
    },
    "a merge of what is no token": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}},
    "a merge that is no pair": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}},
    "a merge into what is no token": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"]}},
    "an impossible dropout": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 2.0}},
    "another model": {"model": {"type": "Unigram", "vocab": {}}},
    "another decoder": {"decoder": {"type": "Metaspace"}},
    "an unknown step": {"pre_tokenizer": {"type": "Metaspace"}},
    "a pattern that backtracks": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}}},
    "a pattern inside": {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC", "pattern": {"Regex": "x"}}]}
    },
    "a sequence that is no list": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": 3}},
}


@pytest.mark.parametrize("what", TOKENIZERS)
def test_a_hostile_tokenizer_json_is_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(TOKENIZER | TOKENIZERS[what]))
    with pytest.raises((FormatError, UnsupportedError)):
        load_tokenizer(path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x07\0\0\0" + struct.pack("<fi", 0.0, 1 << 30),
        b"\x07\0\0\0" + struct.pack("<fi", 0.0, -1),
        b"\x07\0\0\0" + struct.pack("<fi", 0.0, 3) + b"ab",
        b"\x07\0\0\0\0\0",
        b"\x07\0\0\0" + struct.pack("<fi", 0.0, 1) * 3,
    ],
)
def test_a_hostile_llama2c_tokenizer_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.bin").write_bytes(data)
    with pytest.raises(FormatError):
        load_tokenizer(tmp_path / "tokenizer.bin")


@pytest.mark.parametrize("form", ["stories260K/stories260K.bin", "stories260K/stories260K-f32.gguf"])
def test_models_trained_with_begin_of_text_are_given_it(form: str) -> None:
    tokenizer = checkpoints.find(shared(form)).tokenizer
    assert tokenizer is not None
    assert (tokenizer.adds_bos, tokenizer.bos_id) == (True, 1)
