"""Benchmarks: `python tests/bench [NAME ...]`, by default all of NAMES. Run by `make bench`.

Each prints tables and writes every measurement to build/bench/NAME.json. Quote medians of paired ratios: on a shared
machine a single time says little.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import bf16
import convert
import decode
import gemm
import growth
import operators
import peak
import saving
import steps
from workloads import WORKLOADS

from ggmlgraph import machine

NAMES = ("peak", "gemm", "steps", "growth", "decode", "bf16", "convert", "saving", "operators")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="tests/bench", description="Measure ggmlgraph beside torch and the peak.")
    parser.add_argument("names", nargs="*", metavar="|".join(NAMES), help="what to measure; default: everything")
    parser.add_argument("--threads", type=int, default=machine.n_threads(), help="default: all processors")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each kind; default: 5")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="of steps; default: W1,W2,W3")
    parser.add_argument("--batch", type=int, default=0, help="of steps; default: the workload's")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="default: build/bench")
    a = parser.parse_args()
    for name in a.names or NAMES:
        if name not in NAMES:
            parser.error(f"{name} is not one of {', '.join(NAMES)}")
        if name == "steps":
            steps.main(a.out, a.threads, a.rounds, a.workloads.split(","), a.batch)
        else:
            modules = (peak, gemm, growth, decode, bf16, convert, saving, operators)
            {module.__name__: module for module in modules}[name].main(a.out, a.threads, a.rounds)


if __name__ == "__main__":
    main()
