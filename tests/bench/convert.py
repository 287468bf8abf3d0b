"""`ggmlgraph convert` of a checkpoint of 1.08 GB, its check of the weights included, beside `cp` and a sync of it.

Both take turns and begin with nothing waiting to be written. The first rounds find the checkpoint in the page cache,
the others on the disk alone. Memory is sampled every 20 ms: of all resident pages, and of the process's own
(RssAnon); the others are pages of files, which the system takes back when it needs them.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from report import COMMAND, ggmlgraph, paired_ratio, save, seconds_of, show

from ggmlgraph.interchange.formats import safetensors, stored

SIZES = ("n_vocab=32000", "n_embd=1024", "n_head=16", "n_layer=16", "n_ff=2816")
N_VOCAB = 1000  # of the tokenizer; the model's other ids are never used
TEXT = Path(__file__).parents[2] / "docs" / "tutorial.md"
MEMORY = ("VmRSS", "RssAnon")


def make(folder: Path) -> Path:
    """A Hugging Face checkpoint of random weights with a tokenizer; it stays for the next time."""
    made = folder / "checkpoint"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer, graph = folder / "tokenizer.model", folder / "graph.bin"
        for words in (
            ("tokenizer", "train", TEXT, "-o", tokenizer, "--n-vocab", N_VOCAB),
            ("export", "llama", *SIZES, "-o", graph, "--tokenizer", tokenizer),
            ("export-hf", graph, "-o", made),
        ):
            ggmlgraph(*words)
        graph.unlink()
    return made


def copy(source: Path, target: Path) -> dict[str, float]:
    """What a conversion cannot be faster than."""
    return {
        "seconds": seconds_of(lambda: subprocess.run(f"cp {source} {target} && sync {target}", shell=True, check=True))
    }


def convert(source: Path, target: Path) -> dict[str, float]:
    """Seconds of the whole command, start-up included, and its peaks of memory in bytes."""
    peaks = dict.fromkeys(MEMORY, 0.0)
    begin = time.perf_counter()
    command = [*COMMAND, "convert", str(source.parent), "-o", str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while process.poll() is None:
            with suppress(OSError, StopIteration):
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
                for name in MEMORY:
                    line = next(line for line in status if line.startswith(name))
                    peaks[name] = max(peaks[name], 1024.0 * int(line.split()[1]))
            time.sleep(0.02)
        seconds = time.perf_counter() - begin
        said = process.stdout.read() if process.stdout else ""
    if process.returncode or "plain English" not in said:
        raise SystemExit(f"convert failed, or did not check the weights:\n{said}")
    return {"seconds": seconds, **peaks}


def turn(
    work: Callable[[Path, Path], dict[str, float]], source: Path, target: Path, *, cached: bool
) -> dict[str, float]:
    """One measurement, from a calm disk."""
    with source.open("rb") as file:
        if not cached:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while cached and file.read(1 << 24):
            pass
    os.sync()
    result = work(source, target)
    target.unlink()
    return result


def main(out: Path, threads: int, rounds: int) -> None:
    """Measure, print, save."""
    folder = out / "convert"
    source = make(folder) / "model.safetensors"
    tensors = safetensors.read(source).values()
    largest = max(stored.nbytes(t.dtype, t.shape[0] * t.shape[-1]) for t in tensors)
    result: dict[str, Any] = {"nbytes": source.stat().st_size, "largest_tensor": largest}
    rows = []
    for name, cached in (("in the page cache", True), ("on the disk", False)):
        times = [
            [turn(work, source, folder / "out.bin", cached=cached) for work in (copy, convert)] for _ in range(rounds)
        ]
        copies, conversions = [t[0] for t in times], [t[1] for t in times]
        ratio = paired_ratio([t["seconds"] for t in conversions], [t["seconds"] for t in copies])
        peaks = [max(t[kind] for t in conversions) / 2**20 for kind in MEMORY]
        rows.append((name, *(median(t["seconds"] for t in series) for series in (copies, conversions)), ratio, *peaks))
        result[name] = {"copy": copies, "convert": conversions, "ratio": ratio}
    show(f"convert of {source.stat().st_size / 1e9:.2f} GB; largest tensor {largest / 2**20:.0f} MiB",
         ["checkpoint", "cp + sync, s", "convert, s", "ratio", "peak RSS, MiB", "own, MiB"], rows)  # fmt: skip
    save(out, "convert", threads, result)
