"""Whole training steps, ours beside torch eager and torch.compile: one process each, which take turns step by step.

What is compared was measured within the same seconds: a shared machine's clock changes by up to a factor of two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from report import paired_ratio, save, show
from workloads import WORKLOADS, Workload

from ggmlgraph.core.levels import peak_flops

HERE = Path(__file__).parent
FULL_SPEED = 0.95  # of the best peak: less means half a clock, or company


class Contender:
    """A worker.py that steps when told to."""

    def __init__(self, kind: str, w: Workload, threads: int, cache: Path) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_CACHE_DIR": str(cache.resolve()),
        }
        self.process = subprocess.Popen(
            [sys.executable, HERE / "worker.py", kind, w.name, str(w.batch), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.answers: list[dict[str, Any]] = []
        self.peaks: list[tuple[float, float]] = []  # before and after each step

    def step(self, threads: int, warmup: bool = False) -> None:
        """One step, the peak before it and after it."""
        assert self.process.stdin and self.process.stdout
        before = peak_flops(None, threads)
        print("step", file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline() or sys.exit("a worker ended"))
        if not warmup:
            self.answers.append(answer)
            self.peaks.append((before, peak_flops(None, threads)))

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    @property
    def seconds(self) -> list[float]:
        return [answer["seconds"] for answer in self.answers]


def contend(w: Workload, threads: int, rounds: int, kinds: list[str], cache: Path) -> dict[str, Contender]:
    """All contenders through `rounds` steps each, in turns."""
    contenders = {kind: Contender(kind, w, threads, cache) for kind in kinds}
    for contender in contenders.values():
        for _ in range(2):  # memory, threads, compilation
            contender.step(threads, warmup=True)
    for _ in range(rounds):
        for contender in contenders.values():
            contender.step(threads)
    for contender in contenders.values():
        contender.close()
    return contenders


def undisturbed(c: Contender) -> list[float]:
    """Seconds of the steps before and after which the processor did nearly the most it has done."""
    most = max(max(peaks) for peaks in c.peaks)
    return [s for s, peaks in zip(c.seconds, c.peaks, strict=True) if min(peaks) > FULL_SPEED * most]


def row(w: Workload, kind: str, c: Contender, ours: Contender) -> tuple[Any, ...]:
    """Medians; the ratio is over pairs."""
    typical, last = median(c.seconds), c.answers[-1]
    share = median(2 * w.flops / s / sum(peaks) for s, peaks in zip(c.seconds, c.peaks, strict=True))
    calm = undisturbed(c)
    added = (last["peak_memory"] - last["memory_before"]) / 2**20
    planned = f"{last['planned'] / 2**20:,.0f}" if last["planned"] else ""
    return (
        f"{w.name} {kind}", typical, min(c.seconds), max(c.seconds), w.flops / typical / 1e9, share,
        paired_ratio(c.seconds, ours.seconds), len(calm), median(calm) if calm else "",
        f"{last['peak_memory'] / 2**20:,.0f}", f"{added:,.0f}", planned,
    )  # fmt: skip


def main(out: Path, threads: int, rounds: int, names: list[str], batch: int) -> None:
    """Measure, print, save."""
    kinds = ["ours", "eager", "compile"] if find_spec("torch") else ["ours"]
    head = ["step", "s", "min", "max", "GFLOP/s", "of peak", "x ours", "calm", "s calm", "MiB", "added", "planned"]
    result = []
    for name in names:
        w = replace(WORKLOADS[name], batch=batch or WORKLOADS[name].batch)
        contenders = contend(w, threads, rounds, kinds, out / "inductor")
        rows = [row(w, kind, c, contenders["ours"]) for kind, c in contenders.items()]
        show(f"{name}, {threads} threads, {rounds} steps each", head, rows)
        for kind, c in contenders.items():
            result.append({"workload": name, "kind": kind, "batch": w.batch, "ctx": w.ctx, "flops": w.flops,
                           "peaks": c.peaks, "steps": c.answers})  # fmt: skip
    save(out, "steps", threads, result)
