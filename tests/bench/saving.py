"""What saving and telling cost a run: steps with a checkpoint that is written meanwhile beside steps without, and the
time of what is kept and shown of each step.

The cost of a checkpoint is the time of the steps from its begin on, until it is whole, less that of as many without
one; its share is that cost over `--save-every` steps, by default 100.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from report import save, show
from workloads import W3

import ggmlgraph as gg
from ggmlgraph.execution.saver import Saver
from ggmlgraph.training.config import TrainConfig
from ggmlgraph.training.console import Console, Rate
from ggmlgraph.training.metrics import MetricsFile, StepMetrics
from ggmlgraph.training.watch import Watch

LINES = 2000


def main(out: Path, threads: int, rounds: int) -> None:
    """Measure W3."""
    every = TrainConfig().save_every
    with tempfile.TemporaryDirectory(dir=".") as folder:
        graph = Path(folder) / "graph.bin"
        gg.trace(W3.loss, W3.config, W3.batch, W3.ctx).save(graph)
        with gg.Runtime(graph, threads=threads) as runtime, Saver(runtime) as saver:
            windows = np.random.default_rng(0).integers(0, W3.config.n_vocab, (W3.batch, W3.ctx + 1), np.int32)

            def step() -> float:
                started = time.perf_counter()
                runtime.step((windows[:, :-1], windows[:, 1:]), lr=1e-4)
                return time.perf_counter() - started

            step()
            measured = []
            for k in range(rounds):
                started, n, done = time.perf_counter(), 0, False
                saver.start(Path(folder) / f"step_{k}", {}, before=lambda: None, after=None)
                while not done:
                    step()
                    n += 1
                    done = saver.take(wait=False)
                with_save = time.perf_counter() - started
                plain = [step() for _ in range(n)]
                measured.append({"steps": n, "with_s": with_save, "without_s": sum(plain)})
        nbytes = sum(path.stat().st_size for path in (Path(folder) / "step_0").iterdir())
        told = telling(Path(folder) / "metrics.jsonl")
    seconds = statistics.median(each["without_s"] / each["steps"] for each in measured)
    cost = statistics.median(each["with_s"] - each["without_s"] for each in measured)
    result: dict[str, Any] = {
        "step_s": seconds, "checkpoint_bytes": nbytes, "checkpoint_cost_s": cost, "save_every": every,
        "checkpoint_share": cost / (every * seconds), "telling_s": told, "telling_share": told / seconds,
        "rounds": measured,
    }  # fmt: skip
    save(out, "saving", threads, result)
    show(
        "What saving and telling cost a run",
        ["W3, threads", "step, s", "checkpoint, MB", "costs, s", f"of {every} steps", "telling, us", "of a step"],
        [[str(threads), f"{seconds:.2f}", f"{nbytes / 1e6:.0f}", f"{cost:.2f}", f"{result['checkpoint_share']:.2%}",
          f"{told * 1e6:.0f}", f"{result['telling_share']:.4%}"]],
    )  # fmt: skip


def telling(path: Path) -> float:
    """Seconds that a step spends on its line of metrics, on what watches its loss, and on the console."""
    random, watch = np.random.default_rng(0), Watch()
    rate = Rate(n_steps=LINES, tokens=1024, flops=1e12, peak=1e11, measure_peak=lambda: 1e11)
    with MetricsFile(path, 0) as metrics, redirect_stdout(io.StringIO()), Console(rate) as console:
        started = time.perf_counter()
        for k in range(LINES):
            loss = float(random.normal(5, 0.1))
            line = StepMetrics(
                step=k + 1, tokens=k * 1024, loss=loss, lr=1e-3, grad_norm=1.0, tokens_per_s=200.0, elapsed_s=k * 5.0
            )
            metrics.write(line)
            console.progress(line)
            watch.leap(loss)
        return (time.perf_counter() - started) / LINES
