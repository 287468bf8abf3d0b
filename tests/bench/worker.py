"""One contender of a whole step: a process that does a training step for every line it reads and times it.

python worker.py ours|eager|compile WORKLOAD BATCH THREADS

A step is forward, backward and AdamW; ours clips the gradients too, torch's is spared that. Started by steps.py.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from workloads import WORKLOADS, Workload

import ggmlgraph as gg
from ggmlgraph import machine

LR, WEIGHT_DECAY = 1e-4, 0.1
Step = Callable[[Any, Any], float]  # tokens, targets -> loss


def ours(w: Workload, threads: int) -> tuple[Step, int]:
    """The step, and the bytes of memory planned for it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "graph.bin"
        gg.trace(w.loss, w.config, w.batch, w.ctx).save(path)
        runtime = gg.Runtime(path, threads=threads)

    def step(tokens: Any, targets: Any) -> float:
        return runtime.step((tokens, targets), lr=LR, weight_decay=WEIGHT_DECAY).loss

    return step, runtime.programs.train.cost().nbytes


def torchs(w: Workload, threads: int, compiled: bool) -> tuple[Step, int]:
    """The step; nothing is planned."""
    import peers
    import torch

    torch.set_num_threads(threads)
    model = peers.build(w)
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, fused=True)

    def step(tokens: Any, targets: Any) -> float:
        loss = run(*(torch.from_numpy(x.astype(np.int64)) for x in (tokens, targets)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step, 0


def main(kind: str, name: str, batch: int, threads: int) -> None:
    """Answer every line of stdin with one step."""
    w = replace(WORKLOADS[name], batch=batch or WORKLOADS[name].batch)
    before = machine.peak_memory()
    step, planned = ours(w, threads) if kind == "ours" else torchs(w, threads, kind == "compile")
    rng = np.random.default_rng(0)
    for _ in sys.stdin:
        windows = rng.integers(0, w.config.n_vocab, (w.batch, w.ctx + 1), np.int32)
        start = time.perf_counter()
        loss = step(windows[:, :-1], windows[:, 1:])
        answer = {"seconds": time.perf_counter() - start, "loss": loss, "peak_memory": machine.peak_memory(),
                  "memory_before": before, "planned": planned}  # fmt: skip
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
