"""Models go out as GGUF files and folders for transformers, and come back as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggmlgraph import cgraph, convert, exportgguf, exporthf, model, sources, trained
from ggmlgraph.tokenizer import BytesTokenizer, Tokenizer
from ggmlgraph.tracer import trace

SIZES = {"n_vocab": 256, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_ff": 48}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied, heads of another size": ("llama", {"n_head_kv": 2, "tied": True, "head_dim": 12}),
    "mistral": ("mistral", {"window": 64}),
    "qwen2": ("qwen2", {"n_head_kv": 2}),
    "qwen3": ("qwen3", {"head_dim": 12}),
    "gemma": ("gemma", {"head_dim": 12}),
    "phi2": ("phi2", {"rotary_pct": 0.5}),
    "gpt2": ("gpt2", {"n_ctx": 64}),
    "gpt2, untied": ("gpt2", {"n_ctx": 64, "tied": False}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox, sequential": ("gpt_neox", {"parallel_residual": False, "rotary_pct": 1.0}),
}


def graph_of(architecture: str, path: Path, tokenizer: Tokenizer | None = None, **fields: Any) -> Path:
    """A graph with random weights, gains and biases too."""
    loaded = model.load(architecture)
    graph = trace(loaded.loss, model.config(loaded, {**SIZES, **fields}), batch=1, ctx=16)
    rng = np.random.default_rng(0)
    shapes = {node.name: tuple(map(int, node.shape)) for node in graph.nodes if node.initializer}
    values = {name: rng.standard_normal(shape).astype("<f4") * np.float32(0.3) for name, shape in shapes.items()}
    for array in values.values():
        if array.ndim == 1:
            array[:] = 1 + array / 4  # near 1, where Gemma's gains less 1 are exact
    weights = {name: (lambda array=array: iter([array.reshape(-1)])) for name, array in values.items()}
    graph.save(path, weights=weights, tokenizer=tokenizer.to_bytes() if tokenizer else None)
    return path


@pytest.fixture(params=MODELS)
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    architecture, fields = MODELS[request.param]
    return graph_of(architecture, tmp_path / "graph.bin", BytesTokenizer(), **fields)


def back(path: Path, out: Path) -> Path:
    source = sources.find(path)
    convert.convert(source, out, batch=1, ctx=16, tokenizer=source.tokenizer)
    return out


def parameters(path: Path) -> dict[str, bytes]:
    file = cgraph.read(path)
    return {record.name: file.array(i).tobytes() for i, record in enumerate(file.records) if record.is_param}


def test_weights_are_the_same_bytes_after_a_folder_for_transformers(graph: Path, tmp_path: Path) -> None:
    exporthf.export(trained.find(graph), tmp_path / "hf")
    assert parameters(back(tmp_path / "hf", tmp_path / "again.bin")) == parameters(graph)


def test_weights_are_the_same_bytes_after_a_gguf_file(graph: Path, tmp_path: Path) -> None:
    exportgguf.export(trained.find(graph), tmp_path / "m.gguf", "f32")
    assert parameters(back(tmp_path / "m.gguf", tmp_path / "again.bin")) == parameters(graph)


def test_the_computation_is_the_same_after_both(graph: Path, tmp_path: Path) -> None:
    exporthf.export(trained.find(graph), tmp_path / "hf")
    exportgguf.export(trained.find(back(tmp_path / "hf", tmp_path / "hf.bin")), tmp_path / "m.gguf", "f32")
    files = [cgraph.read(path) for path in (graph, back(tmp_path / "m.gguf", tmp_path / "again.bin"))]
    first, last = (cgraph.computation(file.records, file.find("logits") or 0) for file in files)
    assert [step[2:4] for step in first] == [step[2:4] for step in last]
