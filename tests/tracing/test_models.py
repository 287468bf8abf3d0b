"""The models that come with the package: their published sizes, by name wherever a model is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.cli import main
from ggmlgraph.errors import GGError, ShapeError, UsageError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.graphfile.reader import read
from ggmlgraph.models import gpt2, gpt_neox, mistral
from ggmlgraph.tracing import architectures

PUBLISHED = {  # parameters as the papers, model cards and repositories give them
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-30b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "tinyllama-1.1b": 1_100_048_384,
    "stories260k": 260_032,
    "stories15m": 15_191_712,
    "stories42m": 41_689_600,
    "stories110m": 109_529_856,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_630_071_296,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "phi-1": 1_418_270_720,
    "phi-1.5": 1_418_270_720,
    "phi-2": 2_779_683_840,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "nanogpt-char": 10_745_088,
    "pythia-14m": 14_067_712,
    "pythia-31m": 30_494_720,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "gpt-neox-20b": 20_554_567_680,
}
USERS = """
from dataclasses import dataclass
import ggmlgraph as gg

@dataclass(frozen=True)
class Config:
    n_vocab: int = 256
    width: int = 8

PRESETS = {"wide": Config(width=24)}

def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Config) -> gg.Tensor:
    x = p.embedding("token_embd", tokens, c.n_vocab, c.width)
    return p.cross_entropy(p.linear("output", x, c.n_vocab), targets)
"""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_as_many_parameters_as_were_published(name: str) -> None:
    found = architectures.load(name)
    assert architectures.n_params(found, found.preset or architectures.config(found, {})) == PUBLISHED[name]


def test_every_preset_has_a_published_figure() -> None:
    presets = {preset for name in architectures.built_in() for preset in architectures.load(name).presets}
    assert presets == PUBLISHED.keys() - {"gpt2"}


def test_parameters_counted_by_layers_are_those_of_the_whole_graph() -> None:
    for found, config in (
        (architectures.load("gpt_neox"), gpt_neox.Config(n_layer=5)),
        (architectures.load("gpt2"), gpt2.Config()),
    ):
        whole = dataclasses.replace(found, built_in=False)
        assert architectures.n_params(found, config) == architectures.n_params(whole, config)


def test_a_preset_is_exported_by_its_name_with_fields_changed(tmp_path: Path) -> None:
    out = tmp_path / "graph.bin"
    assert main.run(["export", "pythia-14m", "n_layer=1", "n_vocab=256", "-o", str(out)]) == 0
    with Runtime(out, threads=1) as runtime:
        assert runtime.metadata.model == "gpt_neox"
        assert runtime.metadata.config == dataclasses.asdict(
            gpt_neox.Config(n_vocab=256, n_embd=128, n_head=4, n_layer=1)
        )


def test_a_name_that_is_neither_model_nor_preset_is_refused() -> None:
    with pytest.raises(UsageError, match="pythia-71m"):
        architectures.load("pythia-71m")


def test_models_lists_architectures_and_presets_with_their_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:3] == ["gpt_neox", "pythia-70m", "70,426,624"] for line in lines)
    assert len(lines) == 1 + len(architectures.built_in()) + len(PUBLISHED) - 1


def test_models_lists_a_users_file_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(USERS)
    assert main.run(["models", str(tmp_path / "mine.py")]) == 0
    out = capsys.readouterr().out
    assert f"wide{2 * 256 * 24:>12,}".replace(" ", "") in out.replace(" ", "")
    assert "fields: n_vocab=256 width=8" in out


@pytest.mark.parametrize("config", [gpt2.Config(31, 16, 2, 1, n_ctx=8), mistral.Config(31, 16, 2, 1, 1, 24, window=8)])
def test_a_context_beyond_the_models_is_refused_when_traced_and_when_run(config: object, tmp_path: Path) -> None:
    loss = gpt2.loss if isinstance(config, gpt2.Config) else mistral.loss
    if isinstance(config, gpt2.Config):
        with pytest.raises(ShapeError, match="ctx is 9, the model takes at most 8"):
            gg.trace(loss, config, batch=1, ctx=9)
    gg.trace(loss, config, batch=1, ctx=4).save(tmp_path / "graph.bin")
    with Runtime(tmp_path / "graph.bin", threads=1, ctx=8) as runtime:
        assert read(tmp_path / "graph.bin")
        with pytest.raises(GGError, match="ctx is 9, the model takes at most 8"):
            runtime.at(ctx=9)


def test_a_window_is_masked_where_the_context_is_longer(tmp_path: Path) -> None:
    config = mistral.Config(31, 16, 2, 1, 1, 24, window=4)
    graph = gg.trace(mistral.loss, config, batch=1, ctx=9)
    assert graph.fixed == ""
    graph.save(tmp_path / "graph.bin")
    tokens = np.arange(9, dtype=np.int32)[None]
    with Runtime(tmp_path / "graph.bin", threads=1) as runtime:
        seen = runtime.forward("logits", tokens=tokens)[0].copy().reshape(9, 31)
        other = tokens.copy()
        other[0, :5] = 30 - other[0, :5]
        changed = runtime.forward("logits", tokens=other)[0].reshape(9, 31)
    np.testing.assert_array_equal(changed[8], seen[8])
    assert (changed[7] != seen[7]).any()


@pytest.mark.parametrize("name", [name for name in architectures.built_in() if name != "baby_llama"])
def test_attention_of_every_model_is_fused_and_its_graph_follows_batch_and_ctx(name: str, tmp_path: Path) -> None:
    found = architectures.load(name)
    sizes = {"n_vocab": 31, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_ff": 48}
    graph = gg.trace(found.loss, architectures.config(found, sizes), batch=2, ctx=8)
    assert graph.fixed == ""
    graph.save(tmp_path / "graph.bin")
    with Runtime(tmp_path / "graph.bin", threads=1, batch=3, ctx=5) as runtime:
        ops = [runtime.programs.train.graph.op(i) for i in range(len(runtime.programs.train.graph))]
        assert ops.count("attention") == 2
        assert ops.count("diag_mask_inf") == 0
