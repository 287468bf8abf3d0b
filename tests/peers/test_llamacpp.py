"""Exported GGUF files in llama.cpp: its logits, its token ids, its greedy text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_exports import MODELS, graph_of

from ggmlgraph import exportgguf, trained
from ggmlgraph.runtime import Runtime
from ggmlgraph.tokenizer import BytesTokenizer

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

SHARED = Path(__file__).parents[3] / "shared" / "data"
GELU_TABLE = 2e-2  # llama.cpp computes GELU by a table of half-precision numbers
WITH_GELU = ("gemma", "phi2", "gpt2", "gpt_neox")
N_IDS = 48


def llamacpp(model: Path, **request: Any) -> dict[str, Any]:
    script = Path(__file__).with_name("llamacpp.py")
    done = subprocess.run(
        [sys.executable, str(script), str(model)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_every_architecture_are_llamacpps(name: str, tmp_path: Path) -> None:
    architecture, fields = MODELS[name]
    graph = graph_of(architecture, tmp_path / "g.bin", BytesTokenizer(), **fields)
    exportgguf.export(trained.find(graph, 64), tmp_path / "m.gguf", "f32")
    ids = np.random.default_rng(1).integers(0, 256, N_IDS).astype(np.int32)
    answer = llamacpp(tmp_path / "m.gguf", ids=ids.tolist(), logits=str(tmp_path / "l.npy"))
    with Runtime(graph, threads=1, batch=1, ctx=N_IDS) as runtime:
        ours = runtime.forward("logits", tokens=ids[None])[0].reshape(N_IDS, -1)
    theirs = np.load(tmp_path / "l.npy")
    assert answer["n_vocab"] == 256
    assert np.abs(ours - theirs).max() < (GELU_TABLE if architecture in WITH_GELU else 1e-3)
    assert np.abs(ours).max() > 1
