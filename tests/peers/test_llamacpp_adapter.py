"""GGUF adapters in llama.cpp: logits of the base with the adapter are those of the merged model there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapted import adapt, logits
from places import REAL
from randommodels import graph_of

from ggmlgraph.finetuning import attaching, basis, factors, llamacpp, merging
from ggmlgraph.finetuning.lora import LoRA
from ggmlgraph.interchange import checkpoints, convert, exportgguf, trained
from ggmlgraph.tokenizers.plain import BytesTokenizer

pytest.importorskip("llama_cpp", reason="for want of llama_cpp")
SCRIPT = Path(__file__).with_name("llamacpp_adapter.py")
MIXED = LoRA(
    r=4,
    alpha=8.0,
    rslora=True,
    ranks=(("attn_output", 2), ("blk.1.*", 3)),
    alphas=(("ffn_up", 3.0), ("ffn_down", 20.0)),
)


def computed(model: Path, adapter: Path | None, ids: list[int], folder: Path) -> Any:
    (folder / "ids.json").write_text(json.dumps(ids))
    words = [str(model), str(adapter) if adapter else "-", str(folder / "ids.json"), str(folder / "logits.npy")]
    subprocess.run([sys.executable, str(SCRIPT), *words], check=True, capture_output=True, timeout=300)
    return np.load(folder / "logits.npy")


def check(base: Path, lora: LoRA, folder: Path, n_vocab: int) -> None:
    adapted = adapt(base, folder / "a.bin", lora)
    assert llamacpp.write(basis.open_base(adapted), folder / "adapter.gguf") > 0
    merging.merge(adapted, folder / "merged.bin")
    for name in ("base", "merged"):
        exportgguf.export(trained.find(folder / f"{name}.bin", 256), folder / f"{name}.gguf", "f32")
    ids = np.random.default_rng(1).integers(0, n_vocab, 24).tolist()
    with_adapter = computed(folder / "base.gguf", folder / "adapter.gguf", ids, folder)
    merged = computed(folder / "merged.gguf", None, ids, folder)
    alone = computed(folder / "base.gguf", None, ids, folder)
    ours = logits(adapted, np.array([ids], np.int32)).reshape(merged.shape)
    apart, from_ours = (float(np.abs(other - merged).max()) for other in (with_adapter, ours))
    print(f"adapter and merged within {apart:.1e}, ours within {from_ours:.1e}")
    assert np.abs(with_adapter - alone).max() > 0.05
    assert np.abs(with_adapter - merged).max() < 1e-4 * max(1.0, np.abs(merged).max() / 10)
    assert np.abs(with_adapter - ours).max() < 5e-3  # its GELU is a table of half precision


@pytest.mark.parametrize(
    ("architecture", "lora"),
    [
        pytest.param("llama", LoRA(r=4, alpha=8.0), id="plain"),
        pytest.param("llama", MIXED, id="mixed ranks and alphas, rsLoRA"),
        pytest.param(
            "llama", LoRA(r=4, alpha=8.0, targets=("all-linear", "token_embd", "output")), id="table and head"
        ),
        pytest.param("gpt_neox", MIXED, id="gpt_neox"),
        pytest.param("qwen2", MIXED, id="qwen2"),
    ],
)
def test_an_adapter_computes_there_what_the_merged_model_does(architecture: str, lora: LoRA, tmp_path: Path) -> None:
    check(graph_of(architecture, tmp_path / "base.bin", BytesTokenizer()), lora, tmp_path, 256)


def test_an_adapter_of_a_real_model_computes_there_what_the_merged_model_does(tmp_path: Path) -> None:
    source = REAL / "stories260K/stories260K.bin"
    if not source.exists():
        pytest.skip(f"for want of {source}")
    found = checkpoints.find(source)
    convert.convert(found, tmp_path / "base.bin", batch=1, ctx=64, tokenizer=found.tokenizer)
    check(tmp_path / "base.bin", MIXED, tmp_path, 512)


def test_what_the_file_holds_is_read_back(tmp_path: Path) -> None:
    base = graph_of("llama", tmp_path / "base.bin", BytesTokenizer())
    adapted = adapt(base, tmp_path / "a.bin", MIXED)
    llamacpp.write(basis.open_base(adapted), tmp_path / "a.gguf")
    again = attaching.read(tmp_path / "a.gguf", basis.open_base(base)).of
    assert again.keys() == factors.adapters_of(basis.open_base(adapted)).of.keys()
