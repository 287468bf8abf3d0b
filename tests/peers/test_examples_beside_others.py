"""The examples beside torch, from the same weights on the same batches, and computed by real ggml from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_ggml
from examples import examples
from losses import LOSSES, inputs

import ggmlgraph as gg

N_STEPS, CLIP, DECAY = 50, 0.5, 0.1
ADAM = {"betas": (0.9, 0.95), "eps": 1e-8}


def weights(rt: gg.Runtime) -> dict[str, Any]:
    """Of a graph, trained or frozen."""
    return {name: rt.get(name) for name in rt.metadata.initializers}


def test_fifty_steps_of_each_example_follow_torch(tmp_path: Path, check_each: Any) -> None:
    twins = pytest.importorskip("twins", reason="for want of torch")

    def check(name: str) -> None:
        example, lr = examples()[name], 2e-3
        example.graph().save(tmp_path / "g.bin", seed=3)
        with gg.Runtime(tmp_path / "g.bin", threads=1) as rt:
            twin = twins.Twin(name, weights(rt), rt.params, DECAY, lr=lr, **ADAM)
            batches = [example.batch(step) for step in range(N_STEPS)]
            ours = np.array([rt.step(b, lr=lr, weight_decay=DECAY, clip=CLIP).loss for b in batches])
        theirs = np.array([twin.step(b, CLIP) for b in batches])
        worst = np.abs(ours / theirs - 1).max()
        print(f"{name}: {ours[0]:.4f} -> {ours[-1]:.4f}, largest relative difference {worst:.1e}")
        assert worst < 1e-4

    check_each(examples(), check)


@pytest.mark.parametrize("dialect", real_ggml.DIALECTS)
def test_real_ggml_computes_the_loss_of_each_example(dialect: str, tmp_path: Path, check_each: Any) -> None:
    with real_ggml.or_skip(f"real ggml of dialect {dialect}"):
        real_ggml.library(dialect)

    def check(name: str) -> None:
        example, path = examples()[name], tmp_path / f"{name}.bin"
        example.graph().save(path, seed=3, dialect=dialect)
        batch = example.batch(0)
        with gg.Runtime(path, threads=1) as rt:
            ours = rt.loss_of(batch)
            positions = [name for name, feed in rt.metadata.inputs.items() if feed == "positions"]
            filled = {name: np.arange(rt.input(name).size, dtype=np.int32) for name in positions}
        theirs = real_ggml.compute(dialect, path, batch | filled, ["loss"])["loss"]
        assert float(theirs[0]) == pytest.approx(ours, rel=1e-3)

    check_each(examples(), check)


@pytest.mark.parametrize("dialect", real_ggml.DIALECTS)
def test_real_ggml_computes_every_loss(dialect: str, tmp_path: Path, check_each: Any) -> None:
    with real_ggml.or_skip(f"real ggml of dialect {dialect}"):
        real_ggml.library(dialect)

    def check(case: str) -> None:
        given, z = inputs()
        path = tmp_path / "g.bin"
        gg.trace(LOSSES[case][0], batch=len(z)).save(path, dialect=dialect)
        wanted = LOSSES[case][1](z.astype(np.float64), given["ids"], given["labels"], given["weights"])
        with gg.Runtime(path, threads=1) as rt:
            batch = {name: given[name] for name in rt.inputs}
        theirs = real_ggml.compute(dialect, path, batch | {"z": z}, ["loss"])["loss"]
        assert float(theirs[0]) == pytest.approx(wanted, rel=1e-3)

    check_each(LOSSES, check)


TORCH_LOSSES = {
    "ids": lambda F, z, ids, y, w: F.cross_entropy(z, ids),
    "smoothed": lambda F, z, ids, y, w: F.cross_entropy(z, ids, label_smoothing=0.2),
    "soft": lambda F, z, ids, y, w: F.cross_entropy(z, y),
    "soft smoothed": lambda F, z, ids, y, w: F.cross_entropy(z, y, label_smoothing=0.3),
    "mse": lambda F, z, ids, y, w: F.mse_loss(z, y),
    "huber": lambda F, z, ids, y, w: F.huber_loss(z, y),
    "huber 0.3": lambda F, z, ids, y, w: F.huber_loss(z, y, delta=0.3),
    "bce": lambda F, z, ids, y, w: F.binary_cross_entropy_with_logits(z, y),
    "kl": lambda F, z, ids, y, w: F.kl_div(F.log_softmax(z, -1), y, reduction="batchmean"),
}


def test_losses_are_torch_s_of_the_same_name(check_each: Any) -> None:
    torch = pytest.importorskip("torch", reason="for want of torch")
    given, z = inputs()
    operands = [torch.from_numpy(x) for x in (z, given["ids"].astype(np.int64), given["labels"], given["weights"])]

    def check(case: str) -> None:
        theirs = float(TORCH_LOSSES[case](torch.nn.functional, *operands))
        wanted = LOSSES[case][1](z.astype(np.float64), given["ids"], given["labels"], given["weights"])
        assert theirs == pytest.approx(wanted, rel=1e-5)

    check_each(TORCH_LOSSES, check)
