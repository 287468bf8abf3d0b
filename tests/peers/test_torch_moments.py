"""Runs begun with PyTorch go on here: transformers' Trainer, its optimizer.pt, the next steps of torch.optim.AdamW."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_transformers import GPT2, GPT_NEOX, LLAMA, N_VOCAB, as_here

from ggmlgraph.cli import main
from ggmlgraph.execution.optimizers import AdamW
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.interchange import checkpoints

torch = pytest.importorskip("torch", reason="for want of torch")
transformers = pytest.importorskip("transformers", reason="for want of transformers")
pytest.importorskip("accelerate", reason="for want of accelerate, which Trainer needs")

BATCH, CTX, BEFORE, AFTER = 4, 12, 5, 3
LR, BETAS, WEIGHT_DECAY = 1e-2, (0.9, 0.98), 0.1
ADAMW = AdamW(beta1=BETAS[0], beta2=BETAS[1])
KEY_BIASES = ("attn_k.bias", "attn_qkv.bias")
TRAINED = {
    "llama": ("Llama", LLAMA),
    "llama, tied": ("Llama", LLAMA | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 20}),
    "gemma": ("Gemma", LLAMA | {"head_dim": 20, "num_key_value_heads": 1, "pad_token_id": None}),
    "phi": ("Phi", LLAMA),
    "gpt2": ("GPT2", GPT2 | {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}),
    "gpt_neox": ("GPTNeoX", GPT_NEOX),
}


def batches() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, N_VOCAB, (BEFORE + AFTER, BATCH, CTX + 1))


class Windows(torch.utils.data.Dataset):  # type: ignore[misc]
    """The windows of the first steps, one after the other."""

    def __len__(self) -> int:
        return BEFORE * BATCH

    def __getitem__(self, i: int) -> dict[str, Any]:
        window = torch.tensor(batches()[i // BATCH, i % BATCH])
        return {"input_ids": window[:-1], "labels": window[:-1]}


@pytest.fixture(scope="module", params=TRAINED)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model that Trainer trained for some steps, and the folder it kept."""
    name, sizes = TRAINED[request.param]
    torch.manual_seed(0)
    kind = f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    model = getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**sizes, initializer_range=0.15))
    folder = tmp_path_factory.mktemp("run")
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=BATCH, max_steps=BEFORE, save_steps=BEFORE, learning_rate=LR,
        adam_beta2=BETAS[1], weight_decay=WEIGHT_DECAY, lr_scheduler_type="constant", use_cpu=True, report_to=[],
        disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    transformers.Trainer(model, arguments, train_dataset=Windows()).train()
    return model, folder / f"checkpoint-{BEFORE}"


def go_on_there(model: Any, folder: Path) -> list[float]:
    """The next steps in PyTorch, with the state from the file; losses before each."""
    arguments = transformers.TrainingArguments(str(folder), weight_decay=WEIGHT_DECAY, use_cpu=True, report_to=[])
    optimizer = transformers.Trainer(model, arguments).create_optimizer()
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    model.eval()
    losses = []
    for batch in torch.tensor(batches()[BEFORE:]):
        logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, N_VOCAB), batch[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_next_steps_are_those_of_pytorch(run: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = run
    graph, kept = tmp_path / "graph.bin", tmp_path / "kept"
    asked = ["convert", str(folder), "-o", str(graph), "--checkpoint", str(kept), "--batch", str(BATCH)]
    assert main.run([*asked, "--ctx", str(CTX)]) == 0
    wanted = go_on_there(model, folder)
    theirs = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    theirs |= {"embed_out.weight": theirs["lm_head.weight"]} if "lm_head.weight" in theirs else {}
    source = checkpoints.find(folder)
    with Runtime(graph, threads=1, optimizer=ADAMW) as runtime:
        runtime.load(kept)
        assert runtime.n_steps == BEFORE
        for k, batch in enumerate(batches()[BEFORE:].astype(np.int32)):
            result = runtime.step((batch[:, :-1], batch[:, 1:]), lr=LR, weight_decay=WEIGHT_DECAY, clip=0)
            assert result.loss == pytest.approx(wanted[k], abs=1e-5)
        for name in runtime.params:
            there, here = as_here(theirs, name, source) + np.float32(source.format.added(name)), runtime.get(name)
            if name.endswith(KEY_BIASES):  # softmax is the same for any bias of what is not rotated: noise, amplified
                continue
            np.testing.assert_allclose(here, there, rtol=0, atol=1e-5, err_msg=name)
    assert wanted[0] != pytest.approx(wanted[-1], abs=1e-3)


def test_what_the_run_was_trained_with_is_told(
    run: tuple[Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["convert", str(run[1]), "-o", str(tmp_path / "g.bin"), "--checkpoint", str(tmp_path / "kept")]
    assert main.run(asked) == 0
    said = "after 5 steps, trained with lr 0.01, beta1 0.9, beta2 0.98, weight_decay 0.1, eps 1e-08"
    assert said in capsys.readouterr().out
