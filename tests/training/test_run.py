"""A run opens itself: whatever reads it later gets the graph, roles, weights and tokenizer that it was trained with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import File
from safetensors.numpy import load_file

import ggmlgraph as gg
from ggmlgraph.cli import main
from ggmlgraph.errors import CheckpointError
from ggmlgraph.execution import checkpoint
from ggmlgraph.models import llama
from ggmlgraph.table.dialect import LOSS, PARAM
from ggmlgraph.tokenizers.plain import BytesTokenizer
from ggmlgraph.training.run import Run

CONFIG = llama.Config(n_embd=16, n_head=2, n_layer=1, n_ff=24, n_vocab=256)
TEXT = "the quick brown fox jumps over the lazy dog\n" * 40


def own_loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: llama.Config) -> gg.Tensor:
    """Not the usual one: it knows no loss_weights."""
    logits = llama.logits(p, tokens, c).named("logits")
    return (logits * logits).sum() * 1e-4


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)


def save(path: str, loss: Callable[..., Any] = llama.loss, seed: int = 0, config: llama.Config = CONFIG) -> str:
    gg.trace(loss, config, batch=2, ctx=8).save(path, seed=seed, tokenizer=BytesTokenizer().to_bytes())
    return path


def train(graph: str, run: str, *options: str) -> None:
    words = ["--steps", "3", "--save-every", "1", "--predict", "0", "--lr", "0.1", "--warmup", "0", "--threads", "1"]
    data = [] if "--resume" in options or "--input" in options else ["--data", "text.txt"]
    assert main.run(["train", graph, "-o", run, *data, *words, *options]) == 0


def fails(capsys: pytest.CaptureFixture[str], status: int, reason: str, *arguments: str) -> None:
    capsys.readouterr()
    assert main.run(arguments) == status
    errors = capsys.readouterr().err
    assert reason in errors
    assert errors.count("\n") == 1


def weights(run: str, step: int = 3) -> dict[str, Any]:
    return load_file(Path(run) / f"step_{step:06d}" / checkpoint.WEIGHTS)


def assert_usable(run: str) -> None:
    """Every reader of a run takes it, with the weights it was trained to."""
    found = weights(run)
    with Run.open(Path(run)).runtime(threads=1) as runtime:
        for name in runtime.params:
            np.testing.assert_array_equal(runtime.get(name), found[name])
    for command in (["generate", run, "-n", "3"], ["eval", run, "--text", "text.txt"], ["inspect", run],
                    ["inspect", f"{run}/step_000003"], ["export-hf", run, "-o", f"{run}.hf"]):  # fmt: skip
        assert main.run(command) == 0, command
    exported = load_file(f"{run}.hf/model.safetensors")
    np.testing.assert_array_equal(exported["lm_head.weight"], found["output.weight"])
    np.testing.assert_array_equal(exported["model.embed_tokens.weight"], found["token_embd.weight"])


# ---------------------------------------------------------------- roles


@pytest.mark.parametrize("params", [["output*"], ["blk.*", "output.weight"], ["*"]], ids=" ".join)
def test_a_run_of_some_parameters_is_read_as_it_was_trained(params: list[str]) -> None:
    train(save("g.bin"), "run", *(word for pattern in params for word in ("--params", pattern)))
    assert_usable("run")


def test_parameters_that_were_not_trained_stay_as_they_were() -> None:
    train(save("g.bin"), "run", "--params", "output.weight")
    with gg.Runtime("g.bin") as runtime:
        found = weights("run")
        assert [name for name in runtime.params if not np.array_equal(found[name], runtime.get(name))] == [
            "output.weight"
        ]


def test_a_run_of_some_parameters_is_resumed_to_the_same_weights() -> None:
    train(save("g.bin"), "run", "--params", "output*")
    train("g.bin", "other", "--params", "output*")
    for step in (2, 3):
        shutil.rmtree(f"other/step_{step:06d}")
    train("other/graph.bin", "other", "--resume", "auto")
    for name, found in weights("other").items():
        np.testing.assert_array_equal(found, weights("run")[name])


@pytest.mark.parametrize("options", [["--params", "output*"], []], ids=["the same", "all"])
def test_a_new_run_begins_with_the_whole_model_of_one_that_trained_some_parameters(options: list[str]) -> None:
    train(save("g.bin"), "run", "--params", "output*")
    train("g.bin", "next", "--init-from", "run", "--lr", "0", *options)
    assert_usable("next")
    for name, found in weights("next").items():
        np.testing.assert_array_equal(found, weights("run")[name])


def test_a_new_run_of_some_parameters_keeps_the_others_of_the_one_it_begins_with() -> None:
    train(save("g.bin"), "run")
    train("g.bin", "next", "--init-from", "run/step_000003", "--lr", "0", "--params", "output*")
    assert_usable("next")
    for name, found in weights("next").items():
        np.testing.assert_array_equal(found, weights("run")[name])


def test_other_trained_parameters_begin_with_a_new_optimiser_and_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    train(save("g.bin"), "run", "--params", "output*")
    train("g.bin", "next", "--init-from", "run")
    assert "the optimiser begins anew" in capsys.readouterr().err
    train("g.bin", "same", "--init-from", "run", "--params", "output*")
    assert "anew" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [[], ["--accumulate", "2"], ["--params", "output*"]],
    ids=" ".join,
)
def test_a_run_of_an_own_loss_is_read_however_its_batch_was_split(options: list[str]) -> None:
    train(save("g.bin", own_loss), "run", *options)
    assert main.run(["generate", "run", "-n", "3"]) == 0
    assert main.run(["eval", "run", "--text", "text.txt"]) == 0
    train("g.bin", "next", "--init-from", "run")


def test_a_run_on_arrays_is_read_with_its_roles() -> None:
    f = File()
    w, x = f.leaf("w", [1, 2, 3, 4]), f.leaf("x", [0, 0, 0, 0])
    f.node("mse", "SUM", (1,), f.node("square", "SQR", (4,), f.node("product", "MUL", (4,), x, w)))
    f.save(Path("g.bin"))
    np.save("x.npy", np.ones((20, 4), np.float32))
    train("g.bin", "run", "--input", "x=x.npy", "--params", "w", "--loss", "mse")
    with Run.open(Path("run")).runtime(threads=1) as runtime:
        assert (runtime.params, runtime.inputs) == (["w"], ["x"])
        np.testing.assert_array_equal(runtime.get("w"), weights("run")["w"])
    assert main.run(["inspect", "run"]) == 0


# ---------------------------------------------------------------- the graph a checkpoint belongs to


def frozen(path: str, table: float) -> str:
    """loss = sum((w * x)^2), x a table in half precision that is not trained."""
    f = File()
    w, x = f.leaf("w", [1, 2, 3, 4], PARAM), f.leaf("x", [table] * 4, type="F16")
    wide = f.node("wide", "CPY", (4,), x, f.leaf("zero", [0.0] * 4))
    f.node("loss", "SUM", (1,), f.node("square", "SQR", (4,), f.node("product", "MUL", (4,), wide, w)), flags=LOSS)
    f.save(Path(path))
    return path


def test_a_checkpoint_is_refused_by_a_graph_with_other_values_of_what_it_leaves_to_it(tmp_path: Path) -> None:
    with gg.Runtime(frozen("a.bin", 1.0), threads=1) as rt:
        rt.save(tmp_path / "c")
    with gg.Runtime(frozen("b.bin", 2.0), threads=1) as rt, pytest.raises(CheckpointError, match="other values"):
        rt.load(tmp_path / "c")
    with gg.Runtime("a.bin", threads=1) as rt:
        rt.load(tmp_path / "c")


@pytest.mark.parametrize("change", ["graph", "weights", "nothing"])
def test_a_graph_that_lies_in_the_run_directory_is_never_taken_for_another(
    change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = llama.Config(n_embd=16, n_head=4, n_layer=1, n_ff=24, n_vocab=256)  # parameters of the same shapes
    Path("run").mkdir()
    save("run/graph.bin", seed=1 if change == "weights" else 0, config=other if change == "graph" else CONFIG)
    before = Path("run/graph.bin").read_bytes()
    arguments = ["train", save("g.bin"), "-o", "run", "--data", "text.txt", "--steps", "1", "--predict", "0"]
    if change == "nothing":
        assert main.run(arguments) == 0
        assert main.run(["generate", "run", "-n", "1"]) == 0
    else:
        fails(capsys, 2, "run/graph.bin is another graph than g.bin", *arguments)
    assert Path("run/graph.bin").read_bytes() == before


def test_an_export_refuses_a_checkpoint_of_other_operations(capsys: pytest.CaptureFixture[str]) -> None:
    train(save("g.bin"), "run")
    Path("run/graph.bin").unlink()
    save("run/graph.bin", config=llama.Config(n_embd=16, n_head=4, n_layer=1, n_ff=24, n_vocab=256))
    for command in (["generate", "run"], ["export-hf", "run", "-o", "out"], ["export-gguf", "run", "-o", "out.gguf"]):
        fails(capsys, 1, "is of another graph", *command)


def test_checkpoints_that_hold_the_trained_weights_alone_are_read_with_their_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As they were written before they held the whole model."""
    train(save("g.bin"), "whole", "--params", "output*")
    whole = checkpoint._weights
    monkeypatch.setattr(checkpoint, "_weights", lambda rt: {name: rt.input(name) for name in rt.params})
    train("g.bin", "run", "--params", "output*")
    monkeypatch.setattr(checkpoint, "_weights", whole)
    assert weights("run").keys() < weights("whole").keys()
    with Run.open(Path("run")).runtime(threads=1) as runtime:
        for name, found in weights("whole").items():
            np.testing.assert_array_equal(runtime.get(name), found)
    assert main.run(["export-hf", "run", "-o", "out"]) == 0


# ---------------------------------------------------------------- files of others in the way


@pytest.mark.parametrize(
    "content",
    [b'{"loss": 1.5}\n', b"step,loss\n1,2\n", b'{"step": 1, "loss": 3.1}\n{}\n', b"no line feed", b"\n", b"\xff\xfe"],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("options", [[], ["--resume", "auto"]], ids=["new", "resume"])
def test_metrics_of_another_program_are_left_alone(
    content: bytes, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    Path("out/metrics.jsonl").write_bytes(content)
    fails(capsys, 2, "out/metrics.jsonl is not of a training run", "train", save("g.bin"), "-o", "out",
          "--data", "text.txt", *options)  # fmt: skip
    assert Path("out/metrics.jsonl").read_bytes() == content
    assert {path.name for path in Path("out").iterdir()} == {".lock", "metrics.jsonl"}


@pytest.mark.parametrize("content", [b"", b'{"st', b'{"step":1,"tokens":16,"lo', b"\0" * 64], ids=repr)
def test_a_run_that_died_in_its_first_line_begins_again(content: bytes) -> None:
    Path("run").mkdir()
    Path("run/metrics.jsonl").write_bytes(content)
    train(save("g.bin"), "run", "--resume", "auto", "--data", "text.txt")
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("content", ['{"model_type": "llama"}', "[1]", "{", "{}"])
def test_a_configuration_of_another_program_is_left_alone(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/config.json").write_text(content)
    fails(capsys, 1, "out/config.json", "train", save("g.bin"), "-o", "out", "--data", "text.txt")
    assert Path("out/config.json").read_text() == content


# ---------------------------------------------------------------- where the data lie


def test_a_run_is_resumed_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(save("g.bin"), "run")
    monkeypatch.chdir("/")
    train(str(tmp_path / "run/graph.bin"), str(tmp_path / "run"), "--resume", "auto", "--steps", "5")


def test_a_run_that_died_before_its_first_checkpoint_is_resumed_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(save("g.bin"), "run")
    for path in Path("run").glob("step_*"):
        shutil.rmtree(path)
    monkeypatch.chdir("/")
    train(str(tmp_path / "run/graph.bin"), str(tmp_path / "run"), "--resume", "auto")


def test_a_run_on_arrays_is_resumed_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    f = File()
    w, x = f.leaf("w", [1, 2, 3, 4], PARAM), f.leaf("x", [0, 0, 0, 0])
    f.node("loss", "SUM", (1,), f.node("product", "MUL", (4,), x, w), flags=LOSS)
    f.save(Path("g.bin"))
    np.save("x.npy", np.ones((20, 4), np.float32))
    train("g.bin", "run", "--input", "x=x.npy")
    monkeypatch.chdir("/")
    train(str(tmp_path / "g.bin"), str(tmp_path / "run"), "--resume", "auto", "--steps", "5")


@pytest.mark.parametrize("fate", ["gone", "changed"])
@pytest.mark.parametrize("to", ["run", "other"])
def test_a_run_that_goes_on_needs_its_tokens_not_its_text(fate: str, to: str) -> None:
    train(save("g.bin"), "whole", "--steps", "5")
    train("g.bin", "run", "--steps", "5")
    for step in (4, 5):
        shutil.rmtree(f"run/step_{step:06d}")
    Path("text.txt").write_text("other") if fate == "changed" else Path("text.txt").unlink()
    start = "auto" if to == "run" else "run/step_000003"
    train("run/graph.bin", to, "--resume", start, "--steps", "5")
    assert json.loads(Path(to, "metrics.jsonl").read_text().splitlines()[-1])["step"] == 5
    for name, found in weights(to, 5).items():
        np.testing.assert_array_equal(found, weights("whole", 5)[name])
    train(f"{to}/graph.bin", to, "--resume", "auto", "--steps", "6")


def test_another_text_that_is_given_on_resume_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    train(save("g.bin"), "run")
    Path("other.txt").write_text(TEXT[::-1])
    fails(capsys, 1, "the data are others", "train", "g.bin", "-o", "run", "--resume", "auto", "--data", "other.txt",
          "--steps", "5")  # fmt: skip


def test_tokens_that_are_damaged_are_made_again_from_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    train(save("g.bin"), "run")
    (store,) = Path("run/tokens").iterdir()
    tokens = store / "000000.ids"
    tokens.write_bytes(tokens.read_bytes()[:-1])
    train("run/graph.bin", "run", "--resume", "auto", "--steps", "5")


@pytest.mark.parametrize("kind", ["data", "output", "graph", "input"])
def test_names_need_not_be_utf8(kind: str) -> None:
    odd = os.fsdecode(b"na\xffme")
    graph = save(odd if kind == "graph" else "g.bin")
    Path(odd + ".txt").write_text(TEXT)
    run = odd + "run" if kind == "output" else "run"
    if kind == "input":
        f = File()
        w, x = f.leaf("w", [1, 2, 3, 4], PARAM), f.leaf("x", [0, 0, 0, 0])
        f.node("loss", "SUM", (1,), f.node("product", "MUL", (4,), x, w), flags=LOSS)
        f.save(Path(graph))
        np.save(odd + ".npy", np.ones((20, 4), np.float32))
        options = ["--input", f"x={odd}.npy"]
    else:
        options = ["--data", f"{odd}.txt"]
    assert main.run(["train", graph, "-o", run, "--steps", "1", "--predict", "0", *options]) == 0
    train(f"{run}/graph.bin", run, "--resume", "auto", "--steps", "2")
