"""Adapters in other programs' files, out and in: PEFT folders, GGUF files; several put together; what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapted import adapt, logits, tokens
from randommodels import MODELS, graph_of
from safetensors.numpy import load_file, save_file

from ggmlgraph.cli import main
from ggmlgraph.errors import FormatError, GGError, UnsupportedError, UsageError
from ggmlgraph.finetuning import attaching, basis, factors, llamacpp, merging, peft
from ggmlgraph.finetuning.basis import Choice
from ggmlgraph.finetuning.lora import LoRA
from ggmlgraph.interchange.formats import gguf
from ggmlgraph.tokenizers.plain import BytesTokenizer

MIXED = LoRA(r=4, alpha=8.0, rslora=True, ranks=(("attn_output", 2), ("blk.1.*", 3)), alphas=(("ffn_up", 3.0),))
WITH_TABLE = LoRA(r=4, alpha=8.0, targets=("all-linear", "token_embd"))


def write(adapted: Path, to: Path, kind: str) -> Path:
    opened = basis.open_base(adapted)
    (peft if kind == "peft" else llamacpp).write(opened, to)
    return to


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return graph_of("llama", tmp_path / "base.bin", BytesTokenizer(), n_head_kv=2)


@pytest.mark.parametrize("kind", ["peft", "gguf"])
@pytest.mark.parametrize("model", [name for name in MODELS if "mixtral" not in name])
def test_adapters_of_every_architecture_come_back_the_same(model: str, kind: str, tmp_path: Path) -> None:
    architecture, fields = MODELS[model]
    base = graph_of(architecture, tmp_path / "base.bin", **fields)
    adapted = adapt(base, tmp_path / "a.bin", MIXED)
    file = write(adapted, tmp_path / "adapter", kind)
    before, after = factors.adapters_of(basis.open_base(adapted)), attaching.read(file, basis.open_base(base))
    assert before.of.keys() == after.of.keys()
    for name, own in before.of.items():
        again = after.of[name]
        assert np.array_equal(own.a, again.a)
        assert np.allclose(own.b * own.scale, again.b * again.scale, rtol=1e-6)
        if kind == "peft":
            assert np.array_equal(own.b, again.b) and (own.alpha, own.scale) == (again.alpha, again.scale)


@pytest.mark.parametrize("kind", ["peft", "gguf"])
def test_a_graph_with_an_adapter_of_a_file_computes_the_same(kind: str, base: Path, tmp_path: Path) -> None:
    adapted = adapt(base, tmp_path / "a.bin", WITH_TABLE)
    attaching.attach(base, tmp_path / "b.bin", [str(write(adapted, tmp_path / "adapter", kind))])
    assert np.array_equal(logits(adapted, tokens()), logits(tmp_path / "b.bin", tokens()))


def test_a_gguf_file_has_one_alpha_and_the_rest_of_each_scale_in_b(base: Path, tmp_path: Path) -> None:
    adapted = adapt(base, tmp_path / "a.bin", MIXED)
    file = gguf.read(write(adapted, tmp_path / "a.gguf", "gguf"))
    alpha = file.pairs["adapter.lora.alpha"]
    assert file.pairs["general.type"] == "adapter" and file.pairs["general.architecture"] == "llama"
    for name, own in factors.adapters_of(basis.open_base(adapted)).of.items():
        if "attn_q" in name or "attn_k" in name:
            continue  # whose rows llama.cpp has in another order
        a, b = (next(file.tensors[f"{name}.lora_{which}"].chunks()).reshape(file.tensors[f"{name}.lora_{which}"].shape)
                for which in "ab")  # fmt: skip
        assert np.allclose(alpha / b.shape[1] * (b @ a), own.scale * (own.b @ own.a), atol=1e-6)


def test_plain_adapters_are_the_same_bytes_in_a_gguf_file(base: Path, tmp_path: Path) -> None:
    adapted = adapt(base, tmp_path / "a.bin", LoRA(r=4, alpha=8.0))
    file = gguf.read(write(adapted, tmp_path / "a.gguf", "gguf"))
    own = factors.adapters_of(basis.open_base(adapted)).of["blk.0.ffn_up.weight"]
    assert file.pairs["adapter.lora.alpha"] == 8.0
    assert np.array_equal(next(file.tensors["blk.0.ffn_up.weight.lora_b"].chunks()).reshape(own.b.shape), own.b)


def test_several_adapters_add_up_each_times_its_number(base: Path, tmp_path: Path) -> None:
    first = write(adapt(base, tmp_path / "a.bin", LoRA(r=2, alpha=8.0, targets=("attn_q",))), tmp_path / "one", "peft")
    second = write(adapt(base, tmp_path / "b.bin", WITH_TABLE, seed=5), tmp_path / "two.gguf", "gguf")
    attaching.attach(base, tmp_path / "c.bin", [f"{first}:0.5", f"{second}:-2"])
    together = factors.adapters_of(basis.open_base(tmp_path / "c.bin")).of
    parts = [factors.adapters_of(basis.open_base(tmp_path / name)).of for name in ("a.bin", "b.bin")]
    for name, own in together.items():
        rows = own.b.shape[0] if own.kind == "matrix" else own.a.shape[0]
        wanted = sum(times * part[name].change(0, rows) for part, times in zip(parts, (0.5, -2), strict=True)
                     if name in part)  # fmt: skip
        assert np.allclose(own.change(0, rows), wanted, atol=1e-5)


def test_commands_write_adapters_and_take_them(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapted = adapt(base, tmp_path / "a.bin")
    assert main.run(["export-hf", str(adapted), "--lora", "-o", str(tmp_path / "peft")]) == 0
    assert main.run(["export-gguf", str(adapted), "--lora", "-o", str(tmp_path / "a.gguf")]) == 0
    texts = []
    for words in ([str(adapted)], *([str(base), "--adapter", str(tmp_path / f)] for f in ("peft", "a.gguf"))):
        capsys.readouterr()
        assert main.run(["generate", *words, "-p", "x", "-n", "12", "--temperature", "0", "--threads", "1"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2]
    text = tmp_path / "text.txt"
    text.write_text("what there is to read, and more of it. " * 40)
    assert main.run(["eval", str(base), "--adapter", f"{tmp_path / 'peft'}:0", "--text", str(text)]) == 0
    assert main.run(["merge", str(base), "--adapter", str(tmp_path / "peft"), "-o", str(tmp_path / "m.bin")]) == 0
    assert np.abs(logits(tmp_path / "m.bin", tokens()) - logits(adapted, tokens())).max() < 1e-3


def test_training_goes_on_from_an_adapter_of_a_file(base: Path, tmp_path: Path) -> None:
    folder = write(adapt(base, tmp_path / "a.bin"), tmp_path / "peft", "peft")
    text = tmp_path / "text.txt"
    text.write_text("what there is to read, and more of it. " * 400)
    options = ["--data", str(text), "--ctx", "16", "--batch", "4", "--predict", "0", "--threads", "1", "--steps", "2"]
    run = tmp_path / "run"
    assert main.run(["finetune", str(base), "--adapter", str(folder), *options, "-o", str(run)]) == 0
    again = factors.adapters_of(basis.open_base(run)).of
    before = factors.adapters_of(basis.open_base(tmp_path / "a.bin")).of
    changes = [np.abs(again[name].b - own.b).max() for name, own in before.items()]
    assert 0 < max(changes) < 0.01


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"use_dora": True}, "use_dora is True, which is not read"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is [1]"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"megatron_config": {"a": 1}}, "megatron_config is"),
        ({"loftq_config": {"bits": 4}}, "loftq_config is"),
        ({"a_field_of_tomorrow": 3}, "a_field_of_tomorrow is 3"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3', not LORA"),
        ({"r": 5}, "whose rank is said to be 5, is [4, 32] and"),
        ({"r": True}, "r is True"),
        ({"r": 10**9}, "r is 1000000000"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"rank_pattern": {"q_proj": 7}}, "whose rank is said to be 7"),
        ({"rank_pattern": {"(a+)+$": 7}}, "'(a+)+$' is a pattern that is not read"),
        ({"rank_pattern": {"(": 7}}, "rank_pattern: '('"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern: 'q_proj' is None"),
    ],
)
def test_fields_of_peft_that_ask_for_more_are_refused_by_name(
    change: dict[str, Any], told: str, base: Path, tmp_path: Path
) -> None:
    folder = write(adapt(base, tmp_path / "a.bin"), tmp_path / "peft", "peft")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(GGError) as caught:
        attaching.attach(base, tmp_path / "b.bin", [str(folder)])
    assert told in str(caught.value)
    assert not (tmp_path / "b.bin").exists()


def test_patterns_of_peft_are_matched_as_peft_does(base: Path, tmp_path: Path) -> None:
    """The end of a path behind a dot, a regular expression, the first that fits."""
    folder = write(adapt(base, tmp_path / "a.bin", LoRA(r=4, alpha=8.0, rslora=True)), tmp_path / "peft", "peft")
    config = json.loads((folder / "adapter_config.json").read_text())
    patterns = {"proj": 99, r"layers\.1\.self_attn.q_proj": 5, "q_proj": 7, r"model\.layers\.\d+\.mlp\..*": 6}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": patterns}))
    alphas = {name: own.alpha for name, own in attaching.read(folder, basis.open_base(base)).of.items()}
    assert alphas["blk.1.attn_q.weight"] == 5 and alphas["blk.0.attn_q.weight"] == 7
    assert alphas["blk.0.ffn_up.weight"] == 6 and alphas["blk.0.attn_k.weight"] == 8


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "nan", "other"])
def test_tensors_of_peft_that_do_not_fit_are_told(fault: str, base: Path, tmp_path: Path) -> None:
    folder = write(adapt(base, tmp_path / "a.bin"), tmp_path / "peft", "peft")
    tensors = load_file(folder / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    told = {"missing": f"'{key}' is missing", "extra": "'x.lora_A.weight' is beside no", "shape": "is said to be 4",
            "nan": "not finite", "other": "is beside no matrix"}[fault]  # fmt: skip
    if fault == "missing":
        del tensors[key]
    elif fault == "extra":
        tensors["x.lora_A.weight"] = np.zeros((1, 1), np.float32)
    elif fault == "shape":
        tensors[key] = tensors[key][:, :3].copy()
    elif fault == "nan":
        tensors[key][0, 0] = np.nan
    save_file(tensors, folder / "adapter_model.safetensors")
    if fault == "other":
        base = graph_of("llama", tmp_path / "other.bin", n_head_kv=2, n_layer=1)
    with pytest.raises(FormatError, match=told):
        attaching.attach(base, tmp_path / "b.bin", [str(folder)])


def test_a_gguf_file_of_another_model_or_none_is_told(base: Path, tmp_path: Path) -> None:
    file = write(adapt(base, tmp_path / "a.bin"), tmp_path / "a.gguf", "gguf")
    other = graph_of("gpt_neox", tmp_path / "other.bin")
    with pytest.raises(FormatError, match="an adapter of a llama, not of a gptneox"):
        attaching.attach(other, tmp_path / "b.bin", [str(file)])
    smaller = graph_of("llama", tmp_path / "smaller.bin", n_head_kv=2, n_ff=40)
    with pytest.raises(FormatError, match="which do not fit"):
        attaching.attach(smaller, tmp_path / "b.bin", [str(file)])
    main.run(["export-gguf", str(base), "-o", str(tmp_path / "model.gguf")])
    with pytest.raises(FormatError, match="is no LoRA adapter"):
        attaching.attach(base, tmp_path / "b.bin", [str(tmp_path / "model.gguf")])


def test_no_mutated_adapter_file_does_more_than_be_refused(base: Path, tmp_path: Path) -> None:
    opened = basis.open_base(base)
    adapted = adapt(base, tmp_path / "a.bin", LoRA(r=1, alpha=1.0, targets=("attn_v",)))
    good = write(adapted, tmp_path / "a.gguf", "gguf").read_bytes()
    folder = write(adapted, tmp_path / "peft", "peft")
    rng = np.random.default_rng(0)
    for file, read in ((tmp_path / "m.gguf", tmp_path / "m.gguf"), (folder / "adapter_model.safetensors", folder)):
        content = good if file.suffix == ".gguf" else file.read_bytes()
        for at in rng.integers(0, min(len(content), 600), 150):
            mutated = bytearray(content)
            mutated[at] ^= int(rng.integers(1, 256))
            file.write_bytes(mutated)
            try:
                attaching.read(read, opened)
            except GGError:
                continue
    assert struct.unpack("<I", good[4:8]) == (3,)


def test_adapters_of_another_base_are_refused(base: Path, tmp_path: Path) -> None:
    adapted = adapt(base, tmp_path / "a.bin")
    other = graph_of("llama", tmp_path / "other.bin", n_head_kv=2, n_layer=3)
    with pytest.raises(FormatError, match="adapters of another base"):
        attaching.attach(other, tmp_path / "b.bin", [str(adapted)])


def test_parameters_that_no_adapter_file_holds_are_not_left_out(base: Path, tmp_path: Path) -> None:
    basis.write(base, tmp_path / "a.bin", Choice(LoRA(r=2), ("output_norm",)), 0)
    for kind in ("peft", "gguf"):
        with pytest.raises(UnsupportedError, match=r"output_norm\.weight is trained too"):
            write(tmp_path / "a.bin", tmp_path / "adapter", kind)


def test_what_is_no_adapter_is_told(base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (base, tmp_path / "empty", tmp_path / "nothing"):
        with pytest.raises(GGError):
            attaching.attach(base, tmp_path / "b.bin", [str(path)])
    with pytest.raises(UsageError, match="inf is no scale"):
        attaching.parse("adapter:inf")


def test_a_merger_of_an_adapter_of_huge_values_is_refused(base: Path, tmp_path: Path) -> None:
    folder = write(adapt(base, tmp_path / "a.bin"), tmp_path / "peft", "peft")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({key: np.full_like(value, 1e30) for key, value in tensors.items()}, folder / "adapter_model.safetensors")
    attaching.attach(base, tmp_path / "b.bin", [str(folder)])
    with pytest.raises(FormatError, match="not finite"):
        merging.merge(tmp_path / "b.bin", tmp_path / "m.bin")
    assert not (tmp_path / "m.bin").exists()
