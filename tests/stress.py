"""Runtimes under everything a program may do to them at once, for as long as is wanted:

    python tests/stress.py SECONDS [SEED]

Threads open, run, train, re-size, read, fork, collect and close runtimes that others are using, and hold on to arrays
of those that are gone. What may be refused is refused by an error of ours; anything else, a wrong value in a held
array, or a forked process that does not end by itself, is a finding. Run by execution/test_stress.py and `make stress`.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import ggmlgraph as gg
from ggmlgraph.errors import GGError
from ggmlgraph.models import gpt_neox, llama

N_THREADS, N_RUNTIMES, N_HELD = 4, 3, 24
LONGEST_CHILD = 60  # seconds
BATCH, CTX, N_VOCAB = 2, 8, 31


def write_graphs(folder: Path) -> list[Path]:
    small = {"n_vocab": N_VOCAB, "n_embd": 16, "n_head": 2, "n_layer": 1}
    models = {"llama": (llama.loss, llama.Config(**small, n_ff=24)), "neox": (gpt_neox.loss, gpt_neox.Config(**small))}
    for name, (loss, config) in models.items():
        gg.trace(loss, config, batch=BATCH, ctx=CTX).save(folder / name)
    return [folder / name for name in models]


class Stress:
    """The runtimes that all threads share, and the arrays that some of them hold."""

    def __init__(self, graphs: list[Path], forks: bool) -> None:
        self.graphs, self.forks = graphs, forks
        self.runtimes = [self.open(random.Random(k)) for k in range(N_RUNTIMES)]
        self.counts: Counter[str] = Counter()
        self.findings: list[str] = []

    def open(self, rng: random.Random) -> gg.Runtime:
        return gg.Runtime(rng.choice(self.graphs), threads=rng.choice((1, 2, 3)), accumulate=rng.choice((1, 1, 2)))

    def work(self, seed: int, end: float) -> None:
        rng, held = random.Random(seed), []
        actions = [self.step, self.forward, self.loss, self.read, self.write, self.again, self.resize, self.collect]
        while time.monotonic() < end and not self.findings:
            action: Any = self.fork if self.forks and rng.random() < 0.01 else rng.choice(actions)
            try:
                held += action(rng.choice(self.runtimes), rng) or []
                self.counts[action.__name__] += 1
            except GGError:
                self.counts[f"{action.__name__} refused"] += 1
            except BaseException as error:
                self.findings.append(f"{action.__name__}: {type(error).__name__}: {error}")
            while len(held) > N_HELD:
                array, values = held.pop(rng.randrange(len(held)))
                if values is not None and not np.array_equal(array, values):
                    self.findings.append("an array changed that nobody may change")

    # Each does one thing, and gives arrays to hold with what they must stay, None where others may change them.

    def batch(self, rt: gg.Runtime, rng: random.Random) -> tuple[Any, Any]:
        n, ctx = rt.window
        tokens = np.random.default_rng(rng.randrange(1 << 30)).integers(0, N_VOCAB, (n * rt.accumulate, ctx), np.int32)
        return tokens, tokens

    def step(self, rt: gg.Runtime, rng: random.Random) -> None:
        rt.step(self.batch(rt, rng), lr=1e-4)

    def forward(self, rt: gg.Runtime, rng: random.Random) -> list[Any]:
        n, ctx = rt.window
        logits = rt.forward("logits", tokens=np.full((n, ctx), rng.randrange(N_VOCAB), np.int32))[0]
        return [(logits, logits.copy())]

    def loss(self, rt: gg.Runtime, rng: random.Random) -> None:
        tokens, targets = self.batch(rt, rng)
        rt.loss(tokens[: rt.window[0]], targets[: rt.window[0]])

    def read(self, rt: gg.Runtime, rng: random.Random) -> list[Any]:
        found = [rt.get("output.weight"), *list(rt.state()[1].values())[:2]]
        rt.gradient("output.weight")
        return [(found[0], found[0].copy()), *((view, None) for view in [*found[1:], *rt.weights().values()])]

    def write(self, rt: gg.Runtime, rng: random.Random) -> None:
        rt.set("output.weight", rt.get("output.weight") * np.float32(0.999))

    def again(self, rt: gg.Runtime, rng: random.Random) -> None:
        new = self.open(rng)
        self.runtimes[rng.randrange(N_RUNTIMES)] = new
        if rng.random() < 0.7:
            rt.close()

    def resize(self, rt: gg.Runtime, rng: random.Random) -> None:
        other = rt.at(batch=rng.choice((1, 2, 3)), ctx=rng.choice((4, CTX)))
        self.forward(other, rng)
        self.runtimes[rng.randrange(N_RUNTIMES)] = other

    def collect(self, rt: gg.Runtime, rng: random.Random) -> None:
        gc.collect()

    def fork(self, rt: gg.Runtime, rng: random.Random) -> None:
        what = rng.choice((self.forward, self.step, self.read, lambda rt, rng: rt.close()))
        child = os.fork()
        if child == 0:
            signal.alarm(LONGEST_CHILD)
            try:
                what(rt, rng)
            except GGError:
                pass
            finally:
                os._exit(0 if sys.exc_info()[0] is None else 1)
        status = os.waitpid(child, 0)[1]
        if status != 0:
            self.findings.append(f"a forked process ended with {status}")


def main(seconds: float, seed: int, forks: bool = True) -> Counter[str]:
    """How often what was done. Raises AssertionError with the findings."""
    with tempfile.TemporaryDirectory() as folder:
        stress = Stress(write_graphs(Path(folder)), forks)
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=stress.work, args=(seed * 100 + k, end)) for k in range(N_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not stress.findings, stress.findings[:3]
    return stress.counts


if __name__ == "__main__":
    forks = "libtsan" not in Path("/proc/self/maps").read_text()  # which cannot start threads in a forked process
    print(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, forks))
