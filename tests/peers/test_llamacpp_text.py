"""The trained stories260K here and in llama.cpp: the same greedy text, the same perplexity."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from places import REAL
from test_llamacpp import llamacpp

from ggmlgraph.cli import main
from ggmlgraph.generation import evaluate
from ggmlgraph.generation.generate import Generator, open_model
from ggmlgraph.generation.sampling import Sampling

GGUF = REAL / "stories260K" / "stories260K-f32.gguf"
CTX, N_WINDOWS = 128, 3
STORY = "Once upon a time, there was a little girl named Lily. She saw a big dog, and the dog ran to the park. " * 12

pytestmark = pytest.mark.skipif(not GGUF.exists(), reason=f"for want of {GGUF}")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stories") / "g.bin"
    assert main.run(["convert", str(GGUF), "-o", str(path)]) == 0
    return path


@pytest.mark.parametrize("prompt", ["Once upon a time", "Lily and Tom", "The dog"])
def test_greedy_text_is_llamacpps_for_200_tokens(prompt: str, graph: Path) -> None:
    runtime, tokenizer = open_model(graph, threads=2, ctx=256)
    with runtime:
        generator = Generator(runtime, tokenizer)
        ids = generator.ids(prompt)
        ours = list(generator.tokens(ids, 200, Sampling(temperature=0)))
    assert [*ids, *ours] == llamacpp(GGUF, prompt=ids.tolist(), n=200)["tokens"]


def test_perplexity_is_that_of_llamacpps_logits(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text(STORY, encoding="utf-8")
    runtime, tokenizer = open_model(graph, threads=2, ctx=CTX)
    with runtime:
        found = list(evaluate.perplexity(runtime, tokenizer, tmp_path / "story.txt"))[N_WINDOWS - 1]
    ids = [tokenizer.bos_id, *tokenizer.encode(STORY).tolist()]
    losses: list[float] = []
    for begin in range(0, N_WINDOWS * CTX, CTX):
        window = [tokenizer.bos_id, *ids[begin + 1 : begin + CTX]]
        llamacpp(GGUF, ids=window, logits=str(tmp_path / "l.npy"))
        z = np.load(tmp_path / "l.npy").astype(np.float64)
        log_p = z - z.max(1, keepdims=True) - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True))
        losses += [-log_p[i - 1, window[i]] for i in range(CTX // 2 + 1, CTX)]
    assert found.n_tokens == len(losses)
    assert found.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
