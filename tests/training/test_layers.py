"""What a run tells of its layers: sizes that all elements have, and the same weights whether anybody looks or not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.cli.main import run
from ggmlgraph.models import llama
from ggmlgraph.tokenizers.plain import BytesTokenizer
from ggmlgraph.training.events import read
from ggmlgraph.training.layers import SAMPLED, Layers, layer_of

STEPS = 12


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "g.bin"
    config = llama.Config(n_embd=64, n_head=4, n_layer=2, n_ff=96, n_vocab=256)
    gg.trace(llama.loss, config, batch=2, ctx=16).save(path, tokenizer=BytesTokenizer().to_bytes())
    return path


def train(graph: Path, folder: Path, *more: str) -> list[dict[str, Any]]:
    options = ["--steps", str(STEPS), "--warmup", "5", "--eval-every", "4", "--sample-every", "5", "--predict", "8"]
    assert run(["train", str(graph), "--data", "builtin:sine", "-o", str(folder), *options, *more]) == 0
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("blk.3.attn_q", "blk.3"),
        ("token_embd", "token_embd"),
        ("blk.0", "blk.0"),
        ("a.b.7.c", "a"),
        ("", ""),
        ("..", ""),
    ],
)
def test_a_layer_is_what_names_begin_with(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_sizes_from_some_elements_are_those_of_all(graph: Path) -> None:
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 256, (2, 2, 16), dtype=np.int32)
    with gg.Runtime(graph) as runtime:
        layers = Layers(runtime)
        whole = {name: value.copy() for name, value in runtime.weights().items()}
        sampled = layers.weights()
        runtime.step((tokens, targets), lr=1e-2)
        sizes = layers.sizes(sampled)
        assert max(value.size for value in whole.values()) > 2 * SAMPLED
        for layer, told in sizes.items():
            names = [name for name in runtime.params if layer_of(name) == layer]
            kinds = (
                [whole[name] for name in names],
                [runtime.gradient(name) for name in names],
                [runtime.weights()[name] - whole[name] for name in names],
            )
            weights, gradients, moved = (
                math.sqrt(sum(np.square(v, dtype=np.float64).sum() for v in kind) / sum(v.size for v in kind))
                for kind in kinds
            )
            assert told == pytest.approx((weights, gradients, moved / weights), rel=0.1)
    assert sizes.keys() == {"token_embd", "blk.0", "blk.1", "output_norm", "output"}


def test_who_looks_at_layers_changes_no_weight(graph: Path, tmp_path: Path) -> None:
    seen, unseen = (train(graph, tmp_path / every, "--layers-every", every) for every in ("2", "0"))
    assert [line["step"] for line in seen if "layers" in line] == list(range(2, STEPS + 1, 2))
    assert all(None not in sizes for line in seen for sizes in line.get("layers", {}).values())
    assert not any("layers" in line or "memory" in line for line in unseen)
    weights = [(tmp_path / every / f"step_{STEPS:06}" / "weights.safetensors").read_bytes() for every in ("2", "0")]
    assert weights[0] == weights[1]
    assert [line["loss"] for line in seen] == [line["loss"] for line in unseen]


def test_a_run_tells_bits_per_byte_and_parts_of_its_schedule_and_losses_of_samples(graph: Path, tmp_path: Path) -> None:
    lines = train(graph, tmp_path / "run")
    told = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in told] == [4, 8, 12]
    for line in told:  # a token is a byte here
        assert line["val_bits_per_byte"] == pytest.approx(line["val_loss"] / math.log(2))
    events = list(read(tmp_path / "run/events.jsonl"))
    assert [(event.step, event.text) for event in events if event.kind == "phase"] == [(5, "cosine")]
    samples = [event for event in events if event.kind == "sample"]
    assert [event.step for event in samples] == [5, 10, 12]
    for event in samples:
        losses = [loss for _, loss in event.facts["tokens"] if loss is not None]
        assert len(losses) == 8
        assert all(0 < loss < 20 for loss in losses)
        assert "".join(piece for piece, _ in event.facts["tokens"]) == event.text
