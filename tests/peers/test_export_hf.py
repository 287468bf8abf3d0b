"""Exported folders in transformers: logits, weights, token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import REAL
from randommodels import MODELS, graph_of

from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.interchange import exporthf, trained
from ggmlgraph.interchange.tokenizer import load_tokenizer
from ggmlgraph.tokenizers.plain import BytesTokenizer

torch = pytest.importorskip("torch", reason="for want of torch")
transformers = pytest.importorskip("transformers", reason="for want of transformers")
pytest.importorskip("tokenizers", reason="for want of tokenizers")

N_IDS = 48


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_every_architecture_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    architecture, fields = MODELS[name]
    graph = graph_of(architecture, tmp_path / "g.bin", BytesTokenizer(), **fields)
    exporthf.export(trained.find(graph, 64), tmp_path / "hf")
    ids = np.random.default_rng(1).integers(0, 256, N_IDS)
    model, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(ids[None])).logits[0].numpy()
    with Runtime(graph, threads=1, batch=1, ctx=N_IDS) as runtime:
        ours = runtime.forward("logits", tokens=ids[None].astype(np.int32))[0].reshape(N_IDS, -1)
    assert np.abs(ours - theirs).max() < 5e-4
    assert np.abs(ours).max() > 1


def test_what_transformers_saves_again_is_the_same_bytes(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    exporthf.export(trained.find(graph_of("llama", tmp_path / "g.bin", BytesTokenizer())), tmp_path / "hf")
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "again")
    first, second = (load_file(tmp_path / folder / "model.safetensors") for folder in ("hf", "again"))
    assert {k: v.tobytes() for k, v in first.items()} == {k: v.tobytes() for k, v in second.items()}


def test_transformers_reads_several_files(tmp_path: Path) -> None:
    exporthf.export(trained.find(graph_of("llama", tmp_path / "g.bin", BytesTokenizer())), tmp_path / "one")
    exporthf.export(trained.find(tmp_path / "g.bin"), tmp_path / "many", shard_nbytes=20_000)
    one, many = (transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("one", "many"))
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    for name, value in one.state_dict().items():
        assert torch.equal(value, many.state_dict()[name])


@pytest.mark.parametrize(
    "name", ["llama-spm/tokenizer.model", "sentencepiece-ja/test_ja_model.model", "gptneox-shakespeare/tokenizer.json"]
)
def test_token_ids_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    if not (REAL / name).exists():
        pytest.skip(f"for want of {REAL / name}")
    tokenizer = load_tokenizer(REAL / name)
    graph = graph_of("llama", tmp_path / "g.bin", tokenizer, n_vocab=tokenizer.n_vocab, n_layer=1)
    exporthf.export(trained.find(graph), tmp_path / "hf")
    theirs: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = (REAL / "corpora" / "wagahaiwa_nekodearu.txt").read_text().splitlines()[:200]
    text += (REAL / "corpora" / "botchan_en.txt").read_text().splitlines()[:200]
    assert [theirs.encode(line, add_special_tokens=False) for line in text] == [
        tokenizer.encode(line).tolist() for line in text
    ]
