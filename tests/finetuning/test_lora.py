"""Adapters beside the weights of any graph: what is computed, what is trained, what a run of it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapted import adapt, logits, retyped, tokens
from randommodels import MODELS, graph_of

from ggmlgraph.cli import main
from ggmlgraph.core.importer import import_file, read_metadata
from ggmlgraph.errors import FormatError, GGError, UnsupportedError, UsageError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.finetuning import basis, lora, merging
from ggmlgraph.finetuning import factors as factors_of
from ggmlgraph.finetuning.basis import Choice
from ggmlgraph.finetuning.lora import LoRA
from ggmlgraph.graphfile import lowrank, metadata, reader
from ggmlgraph.graphfile.records import computation
from ggmlgraph.tokenizers.plain import BytesTokenizer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return graph_of("llama", tmp_path / "base.bin", BytesTokenizer(), n_head_kv=2)


def plainly(base: Path, target: Path, **fields: Any) -> Path:
    """The base with adapters as they begin."""
    basis.write(base, target, Choice(LoRA(**{"r": 4, "alpha": 8.0, **fields})), 0)
    return target


# ---------------------------------------------------------------- what is computed


@pytest.mark.parametrize("model", MODELS)
def test_adapters_begin_as_the_base_and_merge_to_what_they_compute(model: str, tmp_path: Path) -> None:
    architecture, fields = MODELS[model]
    base = graph_of(architecture, tmp_path / "base.bin", **fields)
    ids = tokens()
    assert np.array_equal(logits(plainly(base, tmp_path / "begin.bin"), ids), logits(base, ids))
    adapted = adapt(base, tmp_path / "adapted.bin")
    merging.merge(adapted, tmp_path / "merged.bin")
    computed, merged = logits(adapted, ids), logits(tmp_path / "merged.bin", ids)
    assert np.abs(computed - logits(base, ids)).max() > 0.01
    assert np.abs(computed - merged).max() < 1e-4 * np.abs(computed).max()


def test_a_merged_graph_is_the_base_with_other_weights(base: Path, tmp_path: Path) -> None:
    merging.merge(plainly(base, tmp_path / "a.bin", dropout=0.1), tmp_path / "merged.bin")
    before, after = reader.read(base), reader.read(tmp_path / "merged.bin")
    roots = [graph.find("loss") for graph in (before, after)]
    assert roots[0] is not None and roots[1] is not None
    assert computation(before.records, roots[0]) == computation(after.records, roots[1])
    values = [{r.name: b"".join(map(bytes, r.data())) for r in graph.records if r.is_param and r.data}
              for graph in (before, after)]  # fmt: skip
    assert values[0] == values[1]  # B is 0
    assert read_metadata(import_file(tmp_path / "merged.bin")) == read_metadata(import_file(base))


@pytest.mark.parametrize("scale", [{}, {"rslora": True}, {"ranks": (("attn_q", 2),), "alphas": (("ffn_up", 3.0),)}])
def test_an_adapter_changes_its_weight_by_scale_b_a(scale: dict[str, Any], base: Path, tmp_path: Path) -> None:
    adapted = adapt(base, tmp_path / "a.bin", LoRA(r=4, alpha=8.0, **scale))
    opened = basis.open_base(adapted)
    factors = factors_of.adapters_of(opened).of
    expected = dict.fromkeys(factors, 8.0 / (2.0 if "rslora" in scale else 4))
    if "ranks" in scale:
        expected |= {name: 8.0 / 2 for name in factors if "attn_q" in name}
        expected |= {name: 3.0 / 4 for name in factors if "ffn_up" in name}
    assert {name: own.scale for name, own in factors.items()} == expected
    merging.merge(adapted, tmp_path / "m.bin")
    with Runtime(base) as before, Runtime(tmp_path / "m.bin") as after:
        for name, own in factors.items():
            change = expected[name] * own.b.astype(np.float64) @ own.a
            assert np.allclose(after.get(name) - before.get(name), change, atol=1e-6)


def test_a_table_is_adapted_by_rows_and_merged(tmp_path: Path) -> None:
    base = graph_of("llama", tmp_path / "base.bin")
    adapted = adapt(base, tmp_path / "a.bin", LoRA(r=4, alpha=8.0, targets=("token_embd", "output")))
    merging.merge(adapted, tmp_path / "m.bin")
    computed, merged = logits(adapted, tokens()), logits(tmp_path / "m.bin", tokens())
    assert np.abs(computed - logits(base, tokens())).max() > 0.01
    assert np.abs(computed - merged).max() < 1e-4 * np.abs(computed).max()


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0", "q4_0", "q4_k"])
def test_a_base_of_any_type_has_the_gradients_of_its_values(dtype: str, tmp_path: Path) -> None:
    large = graph_of("llama", tmp_path / "base.bin", n_embd=256, n_ff=256, n_layer=1)
    typed = retyped(large, tmp_path / "typed.bin", dtype)
    adapted = adapt(typed, tmp_path / "a.bin")
    ids = tokens(ctx=17)
    batch = (ids[:, :-1], ids[:, 1:])
    with Runtime(adapted, batch=1, ctx=16) as coarse:
        weights = {name: coarse.get(name) for name in lowrank.weights(reader.read(typed).records)}
        coarse.backward(batch)
        found = {name: coarse.gradient(name) for name in coarse.params}
    with Runtime(adapt(large, tmp_path / "b.bin"), batch=1, ctx=16) as fine:
        for name, values in weights.items():
            fine.set(name, values)
        fine.backward(batch)
        for name, gradient in found.items():
            wanted = fine.gradient(name)
            assert np.abs(gradient - wanted).max() <= 1e-5 * np.abs(wanted).max(), name


def test_a_file_with_adapters_runs_at_other_sizes_with_dropout_too(base: Path, tmp_path: Path) -> None:
    adapted = adapt(base, tmp_path / "a.bin", LoRA(r=4, alpha=8.0, dropout=0.5))
    ids = tokens(batch=2, ctx=24)
    assert np.allclose(logits(adapted, ids)[:1], logits(adapted, ids[:1]), atol=1e-5)


def test_dropout_is_of_what_the_adapter_is_given_alone(base: Path, tmp_path: Path) -> None:
    """While B is 0 the loss is the base's, whatever is dropped; A's share of the input shows in B's gradient."""
    ids = tokens(ctx=17)
    batch = (ids[:, :-1], ids[:, 1:])
    losses, gradients = [], []
    for dropout in (0.0, 0.5):
        with Runtime(plainly(base, tmp_path / "a.bin", dropout=dropout), batch=1, ctx=16, seed=3) as runtime:
            losses.append(runtime.backward(batch))
            gradients.append(runtime.gradient("blk.0.ffn_up.lora_b"))
    assert losses[0] == losses[1]
    assert not np.array_equal(gradients[0], gradients[1])


# ---------------------------------------------------------------- what is trained


def test_only_adapters_are_trained_and_have_moments(base: Path, tmp_path: Path) -> None:
    with Runtime(plainly(base, tmp_path / "a.bin"), batch=1, ctx=16) as runtime:
        before = {name: runtime.get(name) for name in lowrank.weights(reader.read(base).records)}
        ids = tokens(ctx=17)
        runtime.step((ids[:, :-1], ids[:, 1:]), lr=0.01)
        assert all(".lora_" in name for name in runtime.params)
        assert {name[2:] for name in runtime.state()[1]} == set(runtime.params)
        assert all(np.array_equal(values, runtime.get(name)) for name, values in before.items())


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("all-linear",), {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}),
        (("attn_q", "attn_v"), {"attn_q", "attn_v"}),
        (("blk.*.ffn_*",), {"ffn_gate", "ffn_up", "ffn_down"}),
        (("output",), {"output"}),
        (("token_embd.weight", "attn_k"), {"token_embd", "attn_k"}),
    ],
)
def test_words_choose_what_is_adapted(words: tuple[str, ...], found: set[str], base: Path, tmp_path: Path) -> None:
    said = basis.write(base, tmp_path / "a.bin", Choice(LoRA(r=2, targets=words)), 0)
    assert {name.removesuffix(".weight").rpartition(".")[2] for name in said.adapters} == found


def test_layers_and_the_last_ones_limit_what_is_adapted_and_what_is_trained(base: Path, tmp_path: Path) -> None:
    said = basis.write(base, tmp_path / "a.bin", Choice(LoRA(r=2, layers=(0,))), 0)
    assert {name.split(".")[1] for name in said.adapters} == {"0"}
    said = basis.write(base, tmp_path / "a.bin", Choice(LoRA(r=2), last=1), 0)
    assert {name.split(".")[1] for name in said.adapters} == {"1"}
    basis.write(base, tmp_path / "a.bin", Choice(None, ("ffn_norm",), last=1), 0)
    with Runtime(tmp_path / "a.bin") as runtime:
        assert runtime.params == ["blk.1.ffn_norm.weight"]


def test_parameters_are_trained_in_full_beside_adapters(base: Path, tmp_path: Path) -> None:
    basis.write(base, tmp_path / "a.bin", Choice(LoRA(r=2, targets=("attn_q",)), ("*_norm", "output")), 0)
    with Runtime(tmp_path / "a.bin") as runtime:
        plain = {name for name in runtime.params if ".lora_" not in name}
    assert plain == {"output.weight", "output_norm.weight", *(f"blk.{i}.{n}_norm.weight" for i in (0, 1)
                                                              for n in ("attn", "ffn"))}  # fmt: skip


def test_first_values_follow_from_the_seed_and_the_name(base: Path, tmp_path: Path) -> None:
    def first(seed: int, **fields: Any) -> Any:
        basis.write(base, tmp_path / "a.bin", Choice(LoRA(r=4, **fields)), seed)
        with Runtime(tmp_path / "a.bin") as runtime:
            assert not any(runtime.get(name).any() for name in runtime.params if name.endswith("lora_b"))
            return runtime.get("blk.1.ffn_down.lora_a")

    assert np.array_equal(first(1), first(1, targets=("ffn_down",)))
    assert not np.array_equal(first(1), first(2))
    assert np.abs(first(1)).max() <= 1 / np.sqrt(48) and np.abs(first(1)).max() > 0.9 / np.sqrt(48)
    assert 0.2 < first(1, init="gaussian").std() < 0.3


# ---------------------------------------------------------------- a run


def test_a_run_of_adapters_is_an_ordinary_run(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("what there is to read, and more of it. " * 400)
    run, straight = tmp_path / "run", tmp_path / "straight"
    options = ["--data", str(text), "--lora", "r=4", "alpha=8", "dropout=0.1", "--ctx", "8", "--batch", "4",
               "--predict", "8", "--threads", "1", "--lr", "0.01", "--warmup", "2"]  # fmt: skip
    assert main.run(["finetune", str(base), *options, "--steps", "6", "-o", str(straight)]) == 0
    assert main.run(["finetune", str(base), *options, "--steps", "6", "--save-every", "3", "-o", str(run)]) == 0
    for step in run.glob("step_000006"):
        step.rename(tmp_path / "elsewhere")
    assert main.run(["train", str(run / "graph.bin"), "-o", str(run), "--resume", "auto", "--threads", "1"]) == 0
    for name in ("weights", "optimizer"):
        assert (run / f"step_000006/{name}.safetensors").read_bytes() == (
            straight / f"step_000006/{name}.safetensors"
        ).read_bytes()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert main.run(["generate", str(run), "-p", "what", "-n", "4", "--threads", "1"]) == 0
    assert main.run(["eval", str(run), "--text", str(text), "--threads", "1"]) == 0
    assert main.run(["report", str(run), "-o", str(tmp_path / "r.html")]) == 0
    assert main.run(["merge", str(run), "-o", str(tmp_path / "m.bin")]) == 0
    assert "logits differ from those with adapters by" in capsys.readouterr().out


def test_a_checkpoint_holds_what_is_trained_and_knows_its_base(base: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    adapted = adapt(base, tmp_path / "a.bin")
    with Runtime(adapted) as runtime:
        runtime.save(tmp_path / "step_000001")
        saved = load_file(tmp_path / "step_000001/weights.safetensors")
        assert set(saved) == set(runtime.params)
    other = graph_of("llama", tmp_path / "other.bin", BytesTokenizer(), n_head_kv=2)
    content = bytearray(other.read_bytes())
    file = reader.read(other)
    at = file.offsets[file.find("output_norm.weight") or 0]
    content[at : at + 4] = np.float32(5).tobytes()
    other.write_bytes(content)
    with (
        Runtime(adapt(other, tmp_path / "b.bin")) as runtime,
        pytest.raises(GGError, match="other values of what it leaves to it"),
    ):
        runtime.load(tmp_path / "step_000001")


def test_a_run_is_a_base_too(base: Path, tmp_path: Path) -> None:
    """The base then has the weights of its latest checkpoint."""
    text = tmp_path / "text.txt"
    text.write_text("what there is to read, and more of it. " * 400)
    options = ["--data", str(text), "--ctx", "16", "--batch", "4", "--predict", "0", "--threads", "1"]
    assert main.run(["train", str(base), *options, "--steps", "2", "--lr", "0.1", "-o", str(tmp_path / "run")]) == 0
    adapted = plainly(tmp_path / "run", tmp_path / "a.bin")
    with Runtime(adapted) as runtime, Runtime(base) as before:
        assert not np.array_equal(runtime.get("output.weight"), before.get("output.weight"))


# ---------------------------------------------------------------- what makes no sense


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (["r=0"], "a rank of 0 is not in 1..65536"),
        (["r=64"], "targets: no matrix has a rank of 64"),
        (["r=20", "targets=attn_v"], "rank 20 does not fit blk.0.attn_v.weight, which is [16, 32]"),
        (["alpha=nan"], "alpha: nan is not a number above 0"),
        (["targets=q_proj"], "targets: no matrix is called 'q_proj'; there are token_embd, blk.*.attn_v"),
        (["targets=attn_q", "ranks=ffn_up:8"], "ranks: no adapted matrix is called 'ffn_up'; there are blk.*.attn_q"),
        (["rank=8"], "'rank=8' is not FIELD=VALUE with a FIELD of r, alpha, targets"),
        (["r=8", "r=4"], "r is given twice"),
        (["ranks=attn_q"], "ranks=attn_q: WORD:NUMBER is wanted"),
        (["layers=7"], "layers: there is nothing to adapt in layer 7"),
        (["dropout=1"], "dropout: 1.0 is not a number from 0 to below 1"),
        (["init=pizza"], "init: 'pizza' is not kaiming or gaussian"),
        (["targets=attn_q", "exclude=attn_q"], "targets: nothing is left to adapt"),
    ],
)
def test_fields_that_make_no_sense_are_one_line(fields: list[str], told: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        basis.write(base, tmp_path / "a.bin", Choice(lora.parse(fields)), 0)
    assert told in str(caught.value)
    assert not (tmp_path / "a.bin").exists()


def test_a_tied_table_is_no_matrix_that_an_adapter_could_change(tmp_path: Path) -> None:
    base = graph_of("llama", tmp_path / "base.bin", tied=True)
    with pytest.raises(UsageError, match="no matrix is called 'token_embd'"):
        basis.write(base, tmp_path / "a.bin", Choice(LoRA(targets=("token_embd",))), 0)


def test_a_graph_with_adapters_takes_no_others(base: Path, tmp_path: Path) -> None:
    adapted = plainly(base, tmp_path / "a.bin")
    with pytest.raises(UnsupportedError, match="has adapters already: `ggmlgraph merge`"):
        basis.write(adapted, tmp_path / "b.bin", Choice(LoRA(r=2)), 0)


def test_a_graph_without_adapters_is_not_merged(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no adapters"):
        merging.merge(base, tmp_path / "m.bin")


@pytest.mark.parametrize(
    "finetuned",
    [
        {"base": "x", "adapters": {"blk.0.attn_q.weight": {"rank": 3, "alpha": 1.0}}},
        {"base": "x", "adapters": {"blk.9.attn_q.weight": {"rank": 4, "alpha": 1.0}}},
        {"base": "x", "adapters": {"blk.0.attn_q.weight": {"rank": 0, "alpha": 1.0}}},
        {"base": "x", "adapters": {"output_norm.weight": {"rank": 4, "alpha": 1.0}}},
    ],
)
def test_metadata_that_name_adapters_which_are_not_there_are_refused(
    finetuned: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    opened = basis.open_base(plainly(base, tmp_path / "a.bin"))
    placed = lowrank.as_listed(opened.records, basis.V2)
    basis.write_records(tmp_path / "b.bin", placed, metadata.updated(opened.text, {"finetuned": finetuned}))
    with pytest.raises(FormatError, match="BadMetadata"):
        Runtime(tmp_path / "b.bin")
