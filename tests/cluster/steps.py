"""Train a few steps on the processes of an MPI job, and let rank 0 print a hash of the weights: see test_mpi.py."""

from __future__ import annotations

import hashlib
import sys

import numpy as np

import ggmlgraph as gg
from ggmlgraph.cluster import mpi

SLOTS, STEPS = 8, 3


def main(path: str) -> None:
    ranks = mpi.world()
    random = np.random.default_rng(0)
    with gg.Runtime(path, threads=1, batch=1, accumulate=2 * SLOTS, slots=SLOTS, ranks=ranks) as rt:
        ranks.agree({"the graph": str(rt.n_params)})
        n_vocab, ctx = rt.n_vocab, rt.window[1]
        losses = []
        for _ in range(STEPS):
            tokens = random.integers(0, n_vocab or 1, (2 * SLOTS, ctx + 1)).astype(np.int32)
            result = rt.step((tokens[:, :-1].copy(), tokens[:, 1:].copy()), lr=1e-2)
            losses += [result.loss, result.grad_norm]
        digest = hashlib.sha256(b"".join(rt.get(name).tobytes() for name in rt.params)).hexdigest()
        ranks.agree({"the weights": digest})
    if ranks.rank == 0:
        print(digest, *losses)


main(sys.argv[1])
