"""Graphs that other programs exported with ggml train here from their files, on numpy data.

data/mlp_v1.ggml was written by ggml itself: peers/mlp_ggml.py builds and exports it with ggml-python 0.0.37.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import File
from places import DATA

import ggmlgraph as gg
from ggmlgraph.cli.main import run
from ggmlgraph.data.arrays import ArrayData
from ggmlgraph.errors import ShapeError, UsageError
from ggmlgraph.execution.roles import TARGETS, Roles
from ggmlgraph.table.dialect import LOSS, PARAM

MLP = DATA / "mlp_v1.ggml"
WEIGHTS = ("w1", "b1", "w2", "b2")
N, BATCH = 300, 20


def points() -> tuple[Any, Any]:
    """Three spiral arms, and which arm a point is of."""
    rng = np.random.default_rng(0)
    arm, r = np.arange(N) % 3, rng.uniform(0.1, 1, N)
    angle = 4 * r + arm * 2 * np.pi / 3 + rng.normal(0, 0.1, N)
    return np.stack([r * np.cos(angle), r * np.sin(angle)], 1).astype(np.float32), arm


@pytest.fixture
def files(tmp_path: Path) -> Path:
    x, y = points()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    return tmp_path


def train(files: Path, *options: str, out: str = "run") -> tuple[int, str]:
    """Exit status, and what was printed."""
    words = ["train", str(MLP), "--params", "w?", "--params", "b?", "--loss", "probs", "--input", f"x={files}/x.npy",
             "--targets", f"{files}/y.npy", "--threads", "1", "-o", str(files / out), *options]  # fmt: skip
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = run(words)
    return status, output.getvalue()


def metrics(directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("elapsed_s", "tokens_per_s", "memory")} for line in lines]


def test_a_graph_made_in_ggml_python_trains_from_its_file(files: Path) -> None:
    status, output = train(files, "--steps", "150", "--lr", "0.02", "--weight-decay", "0", "--eval-every", "50")
    assert status == 0, output
    assert "280 to train on, 20 to validate" in output
    found = metrics(files / "run")
    assert found[0]["loss"] > 0.9 > 0.3 > found[-1]["loss"]
    assert found[-1]["val_accuracy"] > 0.8
    assert "right" in output


def test_a_resumed_run_on_samples_has_the_metrics_and_weights_of_one_that_never_stopped(files: Path) -> None:
    assert train(files, "--steps", "12", "--save-every", "5")[0] == 0
    assert train(files, "--steps", "12", "--save-every", "5", out="other")[0] == 0
    for step in ("step_000012", "step_000010"):
        for file in (files / "other" / step).iterdir():
            file.unlink()
        (files / "other" / step).rmdir()
    status, output = train(files, "--resume", "auto", out="other")
    assert status == 0, output
    assert "resumed from" in output
    assert metrics(files / "other") == metrics(files / "run")
    weights = [(files / out / "step_000012" / "weights.safetensors").read_bytes() for out in ("run", "other")]
    assert weights[0] == weights[1]


def test_gradients_of_a_softmax_file_with_targets_are_those_of_the_cross_entropy() -> None:
    x, y = points()
    with gg.Runtime(MLP, threads=1, roles=Roles(params=WEIGHTS, inputs=("x",), loss="probs", targets=True)) as rt:
        loss = rt.backward({"x": x[:BATCH], TARGETS: y[:BATCH]})
        w1, b1, w2, b2 = (rt.get(name).astype(np.float64) for name in WEIGHTS)
        hidden = np.maximum(x[:BATCH] @ w1.T + b1, 0)
        z = hidden @ w2.T + b2
        p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        assert loss == pytest.approx(-np.log(p[np.arange(BATCH), y[:BATCH]]).mean(), rel=1e-5)
        slope = (p - np.eye(3)[y[:BATCH]]) / BATCH
        np.testing.assert_allclose(rt.gradient("w2"), slope.T @ hidden, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(rt.gradient("w1"), ((slope @ w2) * (hidden > 0)).T @ x[:BATCH], rtol=1e-4, atol=1e-6)


def scalar_graph(path: Path) -> Path:
    """loss = sum((w * x)^2) for x of 4 numbers."""
    f = File()
    w, x = f.leaf("w", [1, 2, 3, 4], PARAM), f.leaf("x", [0, 0, 0, 0])
    f.node("loss", "SUM", (1,), f.node("square", "SQR", (4,), f.node("product", "MUL", (4,), x, w)), flags=LOSS)
    return f.save(path)


def test_a_scalar_loss_is_averaged_over_micro_batches(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    with gg.Runtime(scalar_graph(tmp_path / "g.bin"), threads=1, accumulate=3, roles=Roles(inputs=("x",))) as rt:
        assert rt.backward({"x": x}) == pytest.approx(((x * [1, 2, 3, 4]) ** 2).sum(-1).mean(), rel=1e-6)
        np.testing.assert_allclose(rt.gradient("w"), (2 * x**2 * [1, 2, 3, 4]).mean(0), rtol=1e-5)
        with pytest.raises(ShapeError, match=r"x: a step takes 3 x \[4\], got \[2, 4\]"):
            rt.backward({"x": x[:2]})


def test_the_file_s_own_params_can_be_replaced_by_others(tmp_path: Path) -> None:
    with gg.Runtime(scalar_graph(tmp_path / "g.bin"), roles=Roles(params=("x",))) as rt:
        assert rt.params == ["x"]


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (Roles(), "does not say what is trained; its leafs are w"),
        (Roles(params=("v*",)), r"no float32 leaf is called 'v\*'; there are .*w1"),
        (Roles(params=("w1",), inputs=("probs",)), "no leaf 'probs'"),
        (Roles(params=("w1",)), "computes no 'loss'; single numbers it computes: none"),
        (Roles(params=("w1",), loss="probs"), r"the loss 'probs' is f32\[20, 3\]"),
    ],
)
def test_a_role_that_no_tensor_can_play_is_one_line(roles: Roles, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        gg.Runtime(MLP, roles=roles)


BAD_FILES = {
    "not there": (None, "no such file"),
    "no array": (b"hello", "not a .npy file of numbers"),
    "cut off": ("cut", "not a .npy file of numbers"),
    "objects": (np.array([{}, {}], dtype=object), "not a .npy file of numbers"),
    "complex": (np.zeros((N, 2), np.complex64), "holds complex64, the input x takes float32"),
    "another shape": (np.zeros((N, 3), np.float32), r"samples of shape \[3\] for the input x, which takes \[2\]"),
    "another count": (np.zeros((N - 1, 2), np.float32), "as many samples are needed"),
    "empty": (np.zeros((0, 2), np.float32), "holds no samples"),
    "a number": (np.float32(1), "holds no samples"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_npy_file_is_one_line(case: str, files: Path) -> None:
    content, message = BAD_FILES[case]
    path = files / "x.npy"
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_bytes(path.read_bytes()[:-9])
    else:
        np.save(path, content, allow_pickle=True)
    status, output = train(files, "--steps", "1")
    assert status == 1
    assert len(output.splitlines()) == 1
    assert re.search(message, output)


def test_a_target_that_is_no_class_is_named_before_the_first_step(files: Path) -> None:
    y = np.load(files / "y.npy")
    y[7] = 3
    np.save(files / "y.npy", y)
    status, output = train(files)
    assert status == 1
    assert "target 3 (number 7) is not in 0..2" in output


def test_every_epoch_of_samples_sees_each_once(files: Path) -> None:
    np.save(files / "x.npy", np.stack([np.arange(N)] * 2, 1).astype(np.float32))
    with gg.Runtime(MLP, roles=Roles(params=WEIGHTS, inputs=("x",), loss="logits", targets=True)) as rt:
        samples = ArrayData({"x": files / "x.npy", TARGETS: files / "y.npy"}, rt, seed=5)
        n = samples.n_train // BATCH
        seen = np.concatenate([samples.batch(step, BATCH)["x"][:, 0] for step in range(2 * n)]).reshape(2, -1)
        for epoch in seen:
            np.testing.assert_array_equal(np.sort(epoch), np.arange(samples.n_train))
        assert (seen[0] != seen[1]).any()


@pytest.mark.parametrize(("names", "reason"), [(("w", "w"), "2 weights of the graph are named 'w'"),
                                               (("__metadata__", "v"), "named '__metadata__'")])  # fmt: skip
def test_weights_that_no_checkpoint_can_hold_are_refused_before_the_first_step(
    names: tuple[str, str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    f = File()
    a, b, x = (f.leaf(name, [1.0, 2.0, 3.0, 4.0], flags) for name, flags in ((names[0], 4), (names[1], 4), ("x", 0)))
    f.node("loss", "SUM", (1,), f.node("z", "MUL", (4,), f.node("y", "MUL", (4,), a, b), x), flags=8)
    f.save(Path("g.bin"))
    np.save("x.npy", np.ones((100, 4), np.float32))
    assert run(["train", "g.bin", "--input", "x=x.npy", "-o", "run", "--steps", "2"]) == 1
    said = capsys.readouterr()
    assert reason in said.err
    assert "step 1/2" not in said.out
    assert not Path("run/metrics.jsonl").exists()
