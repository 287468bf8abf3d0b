"""Training on what a graph takes and nothing else: batches made in Python, arrays by name, a text without logits."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.cli.main import run as command
from ggmlgraph.data.arrays import ArrayData
from ggmlgraph.data.batches import BatchData
from ggmlgraph.errors import CheckpointError, DataError
from ggmlgraph.training.config import TrainConfig
from ggmlgraph.training.console import Console, Rate
from ggmlgraph.training.loop import Loop
from ggmlgraph.training.rundir import RunDirectory, step_directory

N = 4
Points = Annotated[gg.Tensor, gg.Float("batch", 3)]
Value = Annotated[gg.Tensor, gg.Float("batch", 1)]


def regression(p: gg.Params, x: Points, y: Value) -> gg.Tensor:
    return gg.mse(p.linear("out", gg.tanh(p.linear("hidden", x, 8)), 1), y)


MODEL = """
import ggmlgraph as gg
def loss(p, tokens, targets, c):
    x = p.embedding("token_embd", tokens, 256, 8)
    return gg.mse(p.linear("out", x, 8), p.embedding("target_embd", targets, 256, 8))
"""


def batch(step: int) -> dict[str, Any]:
    x = np.random.default_rng(step).normal(size=(N, 3)).astype(np.float32)
    return {"x": x, "y": np.sin(x).sum(-1, keepdims=True)}


def generated() -> Iterator[dict[str, Any]]:
    buffer, step = batch(0), 0
    while True:  # one buffer, filled again and again, as loaders do
        for name, values in batch(step).items():
            buffer[name][...] = values
        yield buffer
        step += 1


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    gg.trace(regression, batch=N).save(tmp_path / "graph.bin")
    return tmp_path / "graph.bin"


def train(graph: Path, run: Path, batches: Any, steps: int, resume: int | None = None) -> None:
    options = TrainConfig(steps=steps, warmup=0, schedule="constant", lr=0.01, batch=N, ctx=1, eval_every=2, predict=0)
    console = Console(Rate(n_steps=steps, tokens=N, flops=1e6, peak=1e9, measure_peak=lambda: 1e9))
    with gg.Runtime(graph, threads=1) as rt, RunDirectory(run) as directory, console:
        data = BatchData(batches, validation=[batch(1000)])
        trainer = Loop(rt, data, options, directory, sample=None)
        if resume is not None:
            trainer.resume(step_directory(run, resume))
        trainer.run(console)


def losses(run: Path) -> list[Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line.get("val_loss")) for line in lines]


SOURCES: dict[str, Callable[[], Any]] = {
    "function": lambda: batch, "generator": generated, "list": lambda: [batch(step) for step in range(8)]
}  # fmt: skip


def test_a_resumed_run_on_batches_of_python_is_the_one_that_never_stopped(
    graph: Path, tmp_path: Path, check_each: Any
) -> None:
    train(graph, tmp_path / "whole", batch, 8)

    def check(kind: str) -> None:
        train(graph, tmp_path / kind, SOURCES[kind](), 3)
        train(graph, tmp_path / kind, SOURCES[kind](), 8, resume=3)
        assert [line[:2] for line in losses(tmp_path / kind)] == [line[:2] for line in losses(tmp_path / "whole")]
        weights = [(step_directory(tmp_path / run, 8) / "weights.safetensors").read_bytes() for run in (kind, "whole")]
        assert weights[0] == weights[1]

    check_each(SOURCES, check)
    assert losses(tmp_path / "whole")[-1][2] is not None


def test_a_run_is_not_continued_with_other_batches(graph: Path, tmp_path: Path) -> None:
    train(graph, tmp_path / "run", batch, 2)
    with pytest.raises(CheckpointError, match="the data are others"):
        train(graph, tmp_path / "run", lambda step: batch(step + 1), 4, resume=2)


def test_batches_that_are_none_are_one_line(check_each: Any) -> None:
    used = generated()
    data = BatchData(used)
    data.batch(3, N)
    cases: dict[str, tuple[Callable[[], Any], str]] = {
        "no dict": (lambda: BatchData(lambda step: [1]), "the batch of step 0 is a list, not a dict"),  # type: ignore
        "too few": (lambda: BatchData([batch(0)]).batch(1, N), "the batches end before step 1: there are 1"),
        "backwards": (lambda: data.batch(2, N), "past step 2 and cannot be iterated over again"),
    }

    def check(case: str) -> None:
        with pytest.raises(DataError, match=cases[case][1]):
            cases[case][0]()

    check_each(cases, check)


def test_arrays_are_fed_by_name_at_any_batch(graph: Path, tmp_path: Path, capsys: Any) -> None:
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", x.sum(-1, keepdims=True))
    words = ["train", str(graph), "--input", f"x={tmp_path}/x.npy", "--input", f"y={tmp_path}/y.npy", "--batch", "10",
             "--steps", "60", "--lr", "0.02", "--threads", "1", "-o", str(tmp_path / "run")]  # fmt: skip
    assert command(words) == 0, capsys.readouterr().err
    found = losses(tmp_path / "run")
    assert found[-1][1] < 0.3 * found[0][1]


def test_arrays_of_one_npz_file_are_those_of_npy_files(graph: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    arrays = {"x": np.asfortranarray(x), "y": x.sum(-1, keepdims=True)}
    np.savez_compressed(tmp_path / "both.npz", **arrays)
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    with gg.Runtime(graph) as rt:
        one = ArrayData({"x": tmp_path / "both.npz", "y": tmp_path / "both.npz"}, rt, 0)
        two = ArrayData({name: tmp_path / f"{name}.npy" for name in arrays}, rt, 0)
        assert one.digest == two.digest
        for step in (0, 13):
            batches = one.batch(step, N), two.batch(step, N)
            assert all(np.array_equal(batches[0][name], batches[1][name]) for name in arrays)


def test_a_bad_npz_file_is_one_line(graph: Path, tmp_path: Path, check_each: Any) -> None:
    path = tmp_path / "a.npz"

    def header(text: str) -> bytes:
        padded = text.ljust(117) + "\n"
        return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode()

    def member(data: bytes) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", data)
        return stream.getvalue()

    shape = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}"
    whole = member(header(shape % "(2, 3)") + bytes(24))
    cases = {
        "no zip": (b"hello", "not an .npz file of numbers"),
        "cut off": (whole[:-30], "not an .npz file of numbers"),
        "changed": (whole.replace(whole[60:90], whole[60:90][::-1]), "not an .npz file of numbers"),
        "no npy": (member(b"hello there"), "not an .npz file of numbers"),
        "objects": (member(header(shape.replace("<f4", "|O") % "(2, 3)") + bytes(24)), "object are no numbers"),
        "large": (member(header(shape % "(1 << 40, 3)") + bytes(24)), "not an .npz file of numbers"),
        "larger than it is": (member(header(shape % "(99999999999, 3)") + bytes(24)), "not an .npz file of numbers"),
        "negative": (member(header(shape % "(-2, -3)") + bytes(24)), "not an .npz file of numbers"),
    }  # fmt: skip
    np.savez(tmp_path / "b.npz", y=np.zeros(3))

    def check(case: str) -> None:
        path.write_bytes(cases[case][0])
        with gg.Runtime(graph) as rt, pytest.raises(DataError, match=cases[case][1]):
            ArrayData({"x": path}, rt, 0)

    check_each(cases, check)
    with gg.Runtime(graph) as rt, pytest.raises(DataError, match=r"b.npz has no array 'x'; it has y"):
        ArrayData({"x": tmp_path / "b.npz"}, rt, 0)


def test_a_text_trains_a_graph_without_logits(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "text.txt").write_text("to be or not to be, " * 40)
    assert command(["export", f"{tmp_path}/model.py", "-o", f"{tmp_path}/g.bin", "--ctx", "8", "--batch", "2"]) == 0
    words = ["train", f"{tmp_path}/g.bin", "--data", f"{tmp_path}/text.txt", "--steps", "4", "--threads", "1"]
    assert command([*words, "-o", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert "generate" not in capsys.readouterr().out
    assert len(losses(tmp_path / "run")) == 4
    with gg.Runtime(tmp_path / "g.bin") as rt:
        assert rt.n_vocab == 256


def test_what_a_run_on_arrays_lacks_is_told_before_it_begins(graph: Path, tmp_path: Path, capsys: Any) -> None:
    np.save(tmp_path / "x.npy", np.zeros((40, 3), np.float32))
    for words, status, reason in (
        (["--input", f"x={tmp_path}/x.npy"], 2, "the batch has nothing for the input 'y'"),
        ([], 2, "takes no text: give --input x=FILE.npy --input y=FILE.npy"),
    ):
        assert command(["train", str(graph), *words, "-o", str(tmp_path / "run"), "--steps", "2"]) == status
        assert reason in capsys.readouterr().err
        assert not (tmp_path / "run" / "graph.bin").exists()
    assert command(["inspect", str(graph)]) == 0
    assert "input       x f32[4,3]" in capsys.readouterr().out
