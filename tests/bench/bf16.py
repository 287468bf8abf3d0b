"""What bf16 costs in accuracy: W1's first hundred losses on a real text, in float32 and in bf16, ours and torch's.

All start from the same weights, read the same batches and clip and decay alike; the learning rate rises over WARMUP
steps and stays. Nothing is timed. Where no instruction multiplies bf16, torch's autocast takes minutes a step: it runs
for as long as LONGEST, and beside it, for all steps, the same model with its linear products made of the same
roundings and of float32 arithmetic.
"""

from __future__ import annotations

import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from report import save, show
from workloads import W1

import ggmlgraph as gg
from ggmlgraph.data.prepare import prepared
from ggmlgraph.data.text import TextData
from ggmlgraph.interchange.tokenizer import load_tokenizer

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
TEXT, TOKENIZER = SHARED / "corpora" / "tinyshakespeare.txt", SHARED / "llama-spm" / "tokenizer.model"
N_STEPS, WARMUP = 100, 10
LR = 3e-4
LONGEST = 300.0  # seconds
WEIGHT_DECAY, CLIP, BETAS = 0.1, 1.0, (0.9, 0.95)
ADAMW = gg.AdamW(beta1=BETAS[0], beta2=BETAS[1])
SHOWN = (1, 2, 5, 10, 20, 50, 100)  # steps
Step = Callable[[Any, Any, float], float]  # tokens, targets, lr -> loss


def ours(graph: Path, threads: int, matmul_precision: str) -> Step:
    runtime = gg.Runtime(graph, threads=threads, matmul_precision=matmul_precision, optimizer=ADAMW)

    def step(tokens: Any, targets: Any, lr: float) -> float:
        batch = (tokens, targets)
        return runtime.step(batch, lr=lr, weight_decay=WEIGHT_DECAY, clip=CLIP).loss

    return step


def torchs(graph: Path, threads: int, autocast: bool, rounded: bool = False) -> Step:
    import peers
    import torch

    torch.set_num_threads(threads)
    model = peers.build(W1)
    if rounded:
        round_linears(model)
    with gg.Runtime(graph, threads=1) as runtime, torch.no_grad():
        for parameter, values in zip(model.parameters(), torch_weights(runtime), strict=True):
            parameter.copy_(torch.from_numpy(values))
    groups = [{"params": [p for p in model.parameters() if (p.ndim > 1) == matrix], "weight_decay": decay}
              for matrix, decay in ((True, WEIGHT_DECAY), (False, 0.0))]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)

    def step(tokens: Any, targets: Any, lr: float) -> float:
        for group in optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(*(torch.from_numpy(x.astype(np.int64)) for x in (tokens, targets)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    return step


def round_linears(model: Any) -> None:
    """Let every linear layer do what it does under autocast to bf16: round operands and results, add in float32."""
    import torch

    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, w: Any) -> Any:
            x, w = x.bfloat16(), w.bfloat16()
            ctx.save_for_backward(x, w)
            return (x.float() @ w.float().T).bfloat16()

        @staticmethod
        def backward(ctx: Any, *slopes: Any) -> Any:
            x, w = ctx.saved_tensors
            slope = slopes[0].float()
            dw = slope.flatten(0, -2).T @ x.float().flatten(0, -2)
            return (slope @ w.float()).bfloat16(), dw.bfloat16().float()

    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.forward = functools.partial(lambda layer, x: Rounded.apply(x, layer.weight), layer)


def torch_weights(runtime: gg.Runtime) -> Iterator[Any]:
    """Our weights in the order and layout of peers.Llama: it rotates halves of a head where we rotate pairs."""
    weights, c = runtime.weights(), W1.config

    def halves(w: Any) -> Any:
        heads = w.reshape(c.n_head, -1, c.n_embd)
        return np.concatenate([heads[:, 0::2], heads[:, 1::2]], 1).reshape(w.shape)

    yield weights["token_embd.weight"]
    for i in range(c.n_layer):
        q, k, v, output, attn_norm, gate, up, down, ffn_norm = (
            weights[f"blk.{i}.{name}.weight"]
            for name in ("attn_q", "attn_k", "attn_v", "attn_output", "attn_norm", "ffn_gate", "ffn_up", "ffn_down",
                         "ffn_norm")
        )  # fmt: skip
        yield from (attn_norm, ffn_norm, np.concatenate([halves(q), halves(k), v]), output)
        yield from (np.concatenate([gate, up]), down)
    yield from (weights["output_norm.weight"], weights["output.weight"])


def losses(step: Step, data: TextData, longest: float = math.inf) -> list[float]:
    """Of N_STEPS steps, or as many as `longest` seconds allow."""
    found: list[float] = []
    start = time.monotonic()
    while len(found) < N_STEPS and time.monotonic() - start < longest:
        found.append(step(*data.batch(len(found), W1.batch), LR * min(1, (len(found) + 1) / WARMUP)))
    return found


def main(out: Path, threads: int, rounds: int) -> None:
    """Measure, print, save."""
    if not TEXT.exists() or not TOKENIZER.exists():
        print(f"\nbf16: skipped, {TEXT} or {TOKENIZER} is not there")
        return
    with tempfile.TemporaryDirectory() as directory:
        graph = Path(directory) / "graph.bin"
        gg.trace(W1.loss, W1.config, W1.batch, W1.ctx).save(graph)
        tokens = prepared([str(TEXT)], load_tokenizer(TOKENIZER), Path(directory))
        data = TextData(tokens, W1.ctx, 0, n_vocab=W1.config.n_vocab)
        runs: dict[str, list[float]] = {}
        for precision in ("float32", "bf16"):
            runs[f"ours {precision}"] = losses(ours(graph, threads, precision), data)
        try:
            runs["torch float32"] = losses(torchs(graph, threads, False), data)
            runs["torch bf16, rounded"] = losses(torchs(graph, threads, True, rounded=True), data)
            runs["torch bf16 autocast"] = losses(torchs(graph, threads, True), data, LONGEST)
        except ImportError:
            print("\nbf16: torch is not installed")
    exact = np.array(runs["ours float32"])
    rows = []
    for name, values in runs.items():
        difference = np.abs(np.array(values) / exact[: len(values)] - 1)
        most = int(difference.argmax())
        shown = (values[i - 1] if i <= len(values) else "" for i in SHOWN)
        rows.append((name, *shown, f"{difference[most]:.2%} (step {most + 1})"))
    head = ["loss after", *(f"{i}" for i in SHOWN), "farthest from ours float32"]
    show(f"W1 on {TEXT.name}, nats per token by step", head, rows)
    save(out, "bf16", threads, runs)
