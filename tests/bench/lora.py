"""Adapters beside PEFT and torch: tokens per second and peak memory of a step, each in a process of its own.

    python tests/bench/lora.py [n_embd n_layer n_ff n_vocab batch ctx]

A llama of random weights, r=16 on all linear layers, threads all processors. Turns alternate, since the clock of a
shared machine may change from one second to the next; the best of each is told. `full`: ours, training all weights.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

WHO = ("ours", "full", "peft")
DEFAULT = (768, 12, 2048, 32000, 4, 128)
TURNS, STEPS = 3, 3


def batch_of(n_vocab: int, batch: int, ctx: int) -> tuple[Any, Any]:
    ids = np.random.default_rng(0).integers(0, n_vocab, (batch, ctx + 1)).astype(np.int32)
    return ids[:, :-1].copy(), ids[:, 1:].copy()


def ours(folder: Path, batch: tuple[Any, Any], who: str) -> Any:
    from ggmlgraph.execution.runtime import Runtime

    runtime = Runtime(folder / ("base.bin" if who == "full" else "adapted.bin"))
    return lambda: runtime.step(batch, lr=1e-4, weight_decay=0.0).loss


def peft(folder: Path, batch: tuple[Any, Any]) -> Any:
    import os

    import torch
    import transformers
    from peft import PeftModel

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf")
    model = PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, 1e-4)
    ids, targets = (torch.tensor(array).long() for array in batch)

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        return float(loss)

    return step


def work(who: str, folder: Path, sizes: tuple[int, ...]) -> None:
    """Waits for a line, then takes some steps and tells their time, until there are no lines."""
    batch = batch_of(*sizes[3:])
    step = peft(folder, batch) if who == "peft" else ours(folder, batch, who)
    loss = step()
    for _ in sys.stdin:
        begin = time.perf_counter()
        for _ in range(STEPS):
            step()
        seconds = (time.perf_counter() - begin) / STEPS
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps([seconds, peak, loss]), flush=True)


def prepare(folder: Path, sizes: tuple[int, ...]) -> None:
    from ggmlgraph.finetuning import basis
    from ggmlgraph.finetuning import peft as folders
    from ggmlgraph.finetuning.basis import Choice
    from ggmlgraph.finetuning.lora import LoRA
    from ggmlgraph.interchange import exporthf, trained
    from ggmlgraph.models import llama
    from ggmlgraph.tracing.tracer import trace

    n_embd, n_layer, n_ff, n_vocab, batch, ctx = sizes
    config = llama.Config(n_vocab=n_vocab, n_embd=n_embd, n_head=n_embd // 64, n_layer=n_layer, n_ff=n_ff)
    trace(llama.loss, config, batch=batch, ctx=ctx).save(folder / "base.bin")
    basis.write(folder / "base.bin", folder / "adapted.bin", Choice(LoRA()), 0)
    exporthf.export(trained.find(folder / "base.bin"), folder / "hf")
    folders.write(basis.open_base(folder / "adapted.bin"), folder / "adapter")


def main(sizes: tuple[int, ...]) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, sizes)
        words = [sys.executable, "-P", "-W", "ignore", __file__, "--work"]
        workers = {
            who: subprocess.Popen([*words, who, name, *map(str, sizes)], text=True, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            for who in WHO
        }  # fmt: skip
        best = dict.fromkeys(WHO, (float("inf"), 0.0, 0.0))
        for _ in range(TURNS):
            for who, worker in workers.items():
                assert worker.stdin and worker.stdout
                worker.stdin.write("\n")
                worker.stdin.flush()
                best[who] = min(best[who], tuple(json.loads(worker.stdout.readline())))
        for who, worker in workers.items():
            worker.communicate()
            seconds, peak, loss = best[who]
            n = sizes[4] * sizes[5]
            print(f"{who:8} {n / seconds:10,.0f} tokens/s {peak:8,.0f} MiB   first loss {loss:.5f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], Path(sys.argv[3]), tuple(map(int, sys.argv[4:])))
    else:
        main(tuple(map(int, sys.argv[1:])) or DEFAULT)
