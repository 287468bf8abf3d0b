"""`gg.Trainer`: runs from a Python program, on texts, arrays and batches; the command writes the same run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Annotated, Any, get_type_hints

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.cli.main import run as command
from ggmlgraph.models import llama
from ggmlgraph.tokenizers.plain import BytesTokenizer
from ggmlgraph.training.config import Options, TrainConfig
from ggmlgraph.training.rundir import read_config

Points = Annotated[gg.Tensor, gg.Float("batch", 3)]
Value = Annotated[gg.Tensor, gg.Float("batch", 1)]
OPTIONS: dict[str, Any] = {"lr": 0.02, "threads": 1, "tell": None}
SMALL = llama.Config(n_vocab=256, n_embd=16, n_head=2, n_layer=1, n_ff=24)


def regression(p: gg.Params, x: Points, y: Value) -> gg.Tensor:
    return gg.mse(p.linear("out", gg.tanh(p.linear("hidden", x, 8)), 1), y)


X = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
ARRAYS = {"x": X, "y": X.sum(-1, keepdims=True)}


def batches(rows: int = 12) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(1)
    while True:
        x = random.normal(size=(rows, 3)).astype(np.float32)
        yield {"x": x, "y": x.sum(-1, keepdims=True)}


@pytest.fixture
def graph() -> gg.Graph:
    return gg.trace(regression, batch=4)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 80)
    return tmp_path / "text.txt"


def weights(run: Path, step: int) -> bytes:
    return (run / f"step_{step:06d}" / "weights.safetensors").read_bytes()


def test_arrays_train_a_traced_graph_at_any_batch_and_the_losses_come_back(graph: gg.Graph, tmp_path: Path) -> None:
    with gg.Trainer(graph, tmp_path / "run", data=ARRAYS, steps=60, batch=10, **OPTIONS) as trainer:
        before, _ = trainer.evaluate()
        done = trainer.run()
        assert trainer.evaluate() == (done.val_loss, None)
    assert done.finished and done.step == 60 and done.checkpoint is not None and done.checkpoint.is_dir()
    assert done.loss is not None and done.val_loss is not None and before is not None
    assert done.val_loss < 0.3 * before
    assert len(done.history["loss"]) == 60 and done.history["loss"][-1] == done.loss
    assert (
        repr(done)
        == f"<Outcome of {tmp_path / 'run'}: step 60 of 60, loss {done.loss:.4f}, val_loss {done.val_loss:.4f}>"
    )


def test_arrays_in_memory_are_those_of_files_and_of_the_command(graph: gg.Graph, tmp_path: Path) -> None:
    np.savez(tmp_path / "both.npz", **ARRAYS)
    file = tmp_path / "both.npz"
    graph.save(tmp_path / "g.bin")
    gg.Trainer(graph, tmp_path / "a", data=ARRAYS, steps=9, **OPTIONS).run()
    gg.Trainer(tmp_path / "g.bin", tmp_path / "b", data={"x": file, "y": str(file)}, steps=9, **OPTIONS).run()
    words = ["train", str(tmp_path / "g.bin"), "--input", f"x={file}", "--input", f"y={file}", "--steps", "9",
             "--lr", "0.02", "--threads", "1", "-o", str(tmp_path / "c")]  # fmt: skip
    assert command(words) == 0
    assert weights(tmp_path / "a", 9) == weights(tmp_path / "b", 9) == weights(tmp_path / "c", 9)


def test_an_iterator_of_batches_is_trained_on_at_its_own_size_and_resumed(graph: gg.Graph, tmp_path: Path) -> None:
    held_out = [next(batches())]
    trainer = gg.Trainer(graph, tmp_path / "parts", data=batches(), validation=held_out, steps=3, **OPTIONS)
    assert trainer.runtime.sizes == {"batch": 12}
    assert trainer.run().finished
    again = gg.Trainer(
        graph, tmp_path / "parts", data=batches(), validation=held_out, resume="auto", steps=8, **OPTIONS
    )
    done = again.run()
    assert done.step == 8 and done.val_loss is not None and len(done.history["loss"]) == 8


def test_a_resumed_run_is_the_one_that_never_stopped(graph: gg.Graph, tmp_path: Path) -> None:
    same: dict[str, Any] = {"data": batches(), "schedule": "constant", "warmup": 0, **OPTIONS}
    gg.Trainer(graph, tmp_path / "whole", steps=8, **same).run()
    gg.Trainer(graph, tmp_path / "parts", steps=3, **{**same, "data": batches()}).run()
    edited = gg.trace(regression, batch=4)  # traced anew, on another line: the same graph, though not the same file
    gg.Trainer(edited, tmp_path / "parts", data=batches(), steps=8, resume="auto", tell=None, threads=1).run()
    assert weights(tmp_path / "parts", 8) == weights(tmp_path / "whole", 8)


def test_text_trains_a_traced_language_model_which_then_writes(text: Path, tmp_path: Path) -> None:
    told: list[str] = []
    traced = gg.trace(llama.loss, SMALL, batch=2, ctx=16)
    with gg.Trainer(
        traced, tmp_path / "run", data=text, steps=12, predict=5, prompt="the", threads=1, tell=told.append
    ) as trainer:
        trainer.run()
    assert [line.split()[0] for line in told[:5]] == ["model", "text", "step", "memory", "machine"]
    assert told[-1].startswith("sample, step 12: the")
    assert len(gg.generate(tmp_path / "run", "the", 4)) > 3


def test_a_text_graph_without_logits_trains_with_its_defaults(text: Path, tmp_path: Path) -> None:
    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor) -> gg.Tensor:
        x = p.embedding("token_embd", tokens, 256, 8)
        return gg.mse(p.linear("out", x, 8), p.embedding("target_embd", targets, 256, 8))

    traced = gg.trace(loss, batch=2, ctx=8)
    assert gg.Trainer(traced, tmp_path / "a", data=text, steps=2, **OPTIONS).run().finished
    assert gg.Trainer(traced, tmp_path / "b", data=[text], steps=2, predict=0, **OPTIONS).run().finished


def test_a_run_trains_in_a_thread_that_gets_no_signals(graph: gg.Graph, tmp_path: Path) -> None:
    done: list[gg.Outcome] = []
    trainer = gg.Trainer(graph, tmp_path / "run", data=ARRAYS, steps=3, **OPTIONS)
    thread = Thread(target=lambda: done.append(trainer.run()))
    thread.start()
    thread.join()
    assert [each.step for each in done] == [3]


def test_a_directory_is_one_trainers_until_its_run_ends(graph: gg.Graph, tmp_path: Path) -> None:
    trainer = gg.Trainer(graph, tmp_path / "run", data=ARRAYS, steps=2, **OPTIONS)
    with pytest.raises(gg.GGError, match="is in use"):
        gg.Trainer(graph, tmp_path / "run", data=ARRAYS, steps=2, **OPTIONS)
    assert trainer.run().step == 2
    other = gg.Trainer(graph, tmp_path / "run", data=ARRAYS, steps=4, resume="auto", **OPTIONS)
    assert other.run().step == 4
    with pytest.raises(gg.UsageError, match="is later than step 2"):
        trainer.run()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such option": ({"step": 3}, "training has no option 'step': did you mean 'steps'?"),
    "no number": ({"steps": "3"}, "steps: Expected `int`, got `str`"),
    "no data": ({"data": 3}, "data is of type int: give names of texts, a dict of arrays by input, or batches"),
    "no text taken": ({"data": "text.txt"}, "the graph takes no text: give --input x=FILE.npy --input y=FILE.npy"),
    "no batches": ({"data": [1]}, "the batch of step 0 is a int, not a dict of arrays by input"),
    "shape": ({"data": ARRAYS | {"x": X[:, :2]}}, "x: samples of shape [2] for the input x, which takes [3]"),
    "ragged": ({"data": {"x": [[1], [1, 2]]}}, "x: not an array: "),
    "words": ({"data": ARRAYS | {"x": X.astype(object)}}, "x holds object, the input x takes float32"),
    "lengths": ({"data": ARRAYS | {"x": X[:100]}}, "as many samples are needed of every input, but: x 100, y 200"),
    "an input too few": ({"data": {"x": X}}, "the batch has nothing for the input 'y'"),
    "an input too many": ({"data": ARRAYS | {"z": X}}, "no leaf 'z' to put data in"),
    "validation": ({"validation": [ARRAYS]}, "validation is for batches"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_before_the_first_step(case: str, graph: gg.Graph, tmp_path: Path) -> None:
    given, said = WRONG[case]
    with pytest.raises(gg.GGError) as error:
        gg.Trainer(graph, tmp_path / "run", **{"data": ARRAYS, **OPTIONS, **given})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_says_that_a_programs_arrays_come_from_the_program(
    graph: gg.Graph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gg.Trainer(graph, tmp_path / "run", data=ARRAYS, steps=2, **OPTIONS).run()
    kept = read_config(tmp_path / "run")
    assert kept is not None and kept.input == ("x=given:", "y=given:")
    assert command(["train", str(tmp_path / "run/graph.bin"), "-o", str(tmp_path / "run"), "--resume", "auto"]) == 2
    assert "x, y came from a Python program: go on there" in capsys.readouterr().err


def test_class_numbers_in_memory_are_the_targets_of_a_graph_that_has_none(tmp_path: Path) -> None:
    def logits(p: gg.Params, x: Points) -> tuple[gg.Tensor, dict[str, gg.Tensor]]:
        scores = p.linear("out", x, 2)
        return gg.sum(scores), {"logits": scores}

    labels = (X.sum(-1) > 0).astype(np.int64)
    graph = gg.trace(logits, batch=10)
    done = gg.Trainer(graph, tmp_path / "run", data={"x": X}, targets=labels, steps=60, **OPTIONS).run()
    assert done.history["val_accuracy"][-1] > 0.9


def test_type_checkers_know_every_option_that_training_has() -> None:
    assert get_type_hints(Options).keys() == {*TrainConfig.__struct_fields__} - {"data", "input", "targets"}
    hints = get_type_hints(TrainConfig)
    assert all(hints[name] == hint for name, hint in get_type_hints(Options).items())
    assert all(f"{name}," in str(gg.Trainer.__doc__) or f"{name}:" in str(gg.Trainer.__doc__) for name in hints)


def test_a_tokenizer_is_given_as_an_object_or_a_path(text: Path, tmp_path: Path) -> None:
    traced = gg.trace(llama.loss, SMALL, batch=2, ctx=16)
    done = gg.Trainer(
        traced, tmp_path / "a", data=text, tokenizer=BytesTokenizer(), steps=1, predict=0, **OPTIONS
    ).run()
    assert gg.tokenizer(done.run).kind == "bytes"
