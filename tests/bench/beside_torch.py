"""The examples of docs/examples beside torch: time of a step and memory of the process, each in one of its own.

    python tests/bench/beside_torch.py

Needs torch. One thread each; the median of some rounds of steps.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "peers")]

N_ROUNDS, N_STEPS, LR, CLIP, DECAY = 7, 100, 2e-3, 0.5, 0.1


def measure(kind: str, name: str) -> None:
    """Print microseconds a step and KiB at the peak, as JSON."""
    from examples import examples

    import ggmlgraph as gg
    from ggmlgraph.machine import peak_memory

    example = examples()[name]
    batches = [example.batch(step) for step in range(N_STEPS)]
    with tempfile.TemporaryDirectory() as folder:
        example.graph().save(Path(folder) / "g.bin")
        rt = gg.Runtime(Path(folder) / "g.bin", threads=1)
    if kind == "torch":
        import torch
        from twins import Twin

        torch.set_num_threads(1)
        twin = Twin(name, {k: rt.get(k) for k in rt.metadata.initializers}, rt.params, DECAY, lr=LR)
    times = []
    for _ in range(N_ROUNDS):
        start = time.perf_counter()
        for batch in batches:
            if kind == "torch":
                twin.step(batch, CLIP)
            else:
                rt.step(batch, lr=LR, clip=CLIP, weight_decay=DECAY)
        times.append((time.perf_counter() - start) / N_STEPS)
    print(json.dumps([round(median(times) * 1e6), peak_memory() >> 10]))


def main() -> None:
    """A line for each example."""
    from examples import examples

    print(f"{'':14}{'us a step':>12}{'torch':>8}{'MiB':>8}{'torch':>8}")
    for name in examples():
        ours, theirs = (
            json.loads(subprocess.run([sys.executable, __file__, kind, name], check=True, capture_output=True).stdout)
            for kind in ("ours", "torch")
        )
        print(f"{name:14}{ours[0]:12,}{theirs[0]:8,}{ours[1] >> 10:8,}{theirs[1] >> 10:8,}")


if __name__ == "__main__":
    measure(*sys.argv[1:]) if len(sys.argv) > 1 else main()
