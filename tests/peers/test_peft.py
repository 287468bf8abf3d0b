"""Adapters beside PEFT and torch: files both ways, and training from the same first values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapted import adapt, logits, tokens
from places import REAL
from randommodels import graph_of

from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.finetuning import attaching, basis, factors, peft
from ggmlgraph.finetuning.basis import Choice
from ggmlgraph.finetuning.lora import LoRA
from ggmlgraph.interchange import checkpoints, convert, exporthf, trained
from ggmlgraph.tokenizers.plain import BytesTokenizer

torch = pytest.importorskip("torch", reason="for want of torch")
transformers = pytest.importorskip("transformers", reason="for want of transformers")
theirs = pytest.importorskip("peft", reason="for want of peft")

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft's, transformers 5

N_STEPS, BATCH, CTX = 50, 4, 32
LR, CLIP, BETAS = 5e-4, 1.0, (0.9, 0.95)
KINDS = {
    "LoRA": LoRA(r=8, alpha=16.0),
    "rsLoRA": LoRA(r=8, alpha=16.0, rslora=True),
    "patterns": LoRA(r=8, alpha=16.0, ranks=(("attn_output", 2), ("blk.1.*", 4)), alphas=(("ffn_up", 3.0),)),
}


def graph_and_model(name: str, folder: Path) -> tuple[Path, Any]:
    """The same model as a graph and in transformers."""
    hf = REAL / {"stories260K": "stories260K/hf", "gptneox": "gptneox-shakespeare"}[name]
    if not hf.exists():
        pytest.skip(f"for want of {hf}")
    convert.convert(checkpoints.find(hf), folder / "base.bin", batch=BATCH, ctx=CTX, tokenizer=None)
    return folder / "base.bin", transformers.AutoModelForCausalLM.from_pretrained(hf).float()


def random_text(n_vocab: int) -> list[tuple[Any, Any]]:
    """Batches of a stream that a model can learn."""
    stream = np.random.default_rng(0).integers(0, n_vocab, 1 << 14) % np.arange(1, (1 << 14) + 1).clip(max=61)
    at = np.random.default_rng(1).integers(0, len(stream) - CTX - 1, (N_STEPS, BATCH))
    windows = stream[at[..., None] + np.arange(CTX + 1)].astype(np.int32)
    return [(w[:, :-1].copy(), w[:, 1:].copy()) for w in windows]


def train_theirs(model: Any, batches: list[tuple[Any, Any]]) -> list[float]:
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, LR, BETAS, 1e-8, weight_decay=0.0)
    losses = []
    for ids, targets in batches:
        scores = model(torch.tensor(ids).long()).logits
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), torch.tensor(targets).long().flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("name", "kind"),
    [("stories260K", "LoRA"), ("stories260K", "rsLoRA"), ("stories260K", "patterns"), ("gptneox", "LoRA"),
     ("gptneox", "patterns")],
)  # fmt: skip
def test_fifty_steps_follow_peft_from_the_same_first_values(name: str, kind: str, tmp_path: Path) -> None:
    base, model = graph_and_model(name, tmp_path)
    basis.write(base, tmp_path / "a.bin", Choice(KINDS[kind]), 0)
    peft.write(basis.open_base(tmp_path / "a.bin"), tmp_path / "first")
    adapted = theirs.PeftModel.from_pretrained(model, tmp_path / "first", is_trainable=True)
    with Runtime(tmp_path / "a.bin", threads=2, batch=BATCH, ctx=CTX) as runtime:  # AdamW, betas as usual
        batches = random_text(runtime.n_vocab or 0)
        ours = [runtime.step(b, lr=LR, weight_decay=0.0, clip=CLIP).loss for b in batches]
        runtime.save(tmp_path / "step_000050")
        end = {name: runtime.get(name) for name in runtime.params}
    peers = train_theirs(adapted, batches)
    adapted.save_pretrained(tmp_path / "last")
    last = attaching.read(tmp_path / "last", basis.open_base(base))
    worst = max(abs(a - b) for a, b in zip(ours, peers, strict=True))
    apart = max(
        float(np.abs(end[f"{weight.removesuffix('.weight')}.lora_{which}"] - values).max())
        for weight, own in last.of.items()
        for which, values in (("a", own.a), ("b", own.b))
    )
    print(f"{name} {kind}: {ours[0]:.4f} -> {ours[-1]:.4f}, losses within {worst:.1e}, adapters within {apart:.1e}")
    assert ours[-1] < 0.9 * ours[0]
    assert worst < 1e-4 and apart < 1e-4


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2", "qwen2", "gemma", "phi2"])
def test_peft_computes_what_the_graph_with_its_folder_does(architecture: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"n_ctx": 64} if architecture == "gpt2" else {}
    base = graph_of(architecture, tmp_path / "base.bin", BytesTokenizer(), **fields)
    mixed = LoRA(r=4, alpha=8.0, rslora=True, ranks=(("attn_output", 2),), alphas=(("ffn_up", 3.0),))
    adapted = adapt(base, tmp_path / "a.bin", mixed)
    exporthf.export(trained.find(base, 64), tmp_path / "hf")
    peft.write(basis.open_base(adapted), tmp_path / "adapter")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    model = theirs.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    ids = tokens()
    with torch.no_grad():
        wanted = model(torch.tensor(ids).long()).logits[0].numpy()
    ours = logits(adapted, ids).reshape(wanted.shape)
    assert np.abs(ours - wanted).max() < 1e-4 * max(1.0, np.abs(wanted).max())
    assert np.abs(ours - logits(base, ids).reshape(wanted.shape)).max() > 0.01


def test_a_folder_that_peft_saved_is_read_and_written_the_same(tmp_path: Path) -> None:
    base, model = graph_and_model("stories260K", tmp_path)
    config = theirs.LoraConfig(r=6, lora_alpha=9, target_modules=["q_proj", "down_proj"], use_rslora=True,
                               rank_pattern={"layers.1.self_attn.q_proj": 3}, init_lora_weights=False)  # fmt: skip
    theirs.get_peft_model(model, config).save_pretrained(tmp_path / "saved")
    attaching.attach(base, tmp_path / "a.bin", [str(tmp_path / "saved")])
    peft.write(basis.open_base(tmp_path / "a.bin"), tmp_path / "again")
    from safetensors.numpy import load_file

    first, second = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("saved", "again"))
    assert {k: v.tobytes() for k, v in first.items()} == {k: v.tobytes() for k, v in second.items()}
    again = theirs.PeftConfig.from_pretrained(tmp_path / "again")
    assert (again.r, again.lora_alpha, again.use_rslora) == (6, 9, True)
    own = factors.adapters_of(basis.open_base(tmp_path / "a.bin")).of
    assert own["blk.1.attn_q.weight"].rank == 3
