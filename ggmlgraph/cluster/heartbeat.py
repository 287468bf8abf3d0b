"""A process that hangs ends its whole job, by name: MPI alone would let all others wait for it without end.

A thread of each rank sends a message to rank 0 every second, and rank 0 answers; whoever hears nothing for a while says
so and aborts the job. A process that is stopped, swapped out for good or cut off is silent; one that computes for long
is not. A process that died needs none of this, its launcher ends the job. Used by mpi.py.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

EVERY_S = 1.0
SILENCE_S = 10.0
EXIT_STATUS = 1
POLL_S = 0.05


class Heartbeat:
    """Beats from `start` to `stop`. comm: a communicator of its own, of an MPI that several threads may call; name: of
    a rank, for the message."""

    def __init__(self, comm: Any, name: Callable[[int], str]) -> None:
        self._comm, self._name = comm, name
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Called by all ranks when none waits for another any more."""
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        comm = self._comm
        others = [rank for rank in range(comm.size) if rank != comm.rank] if comm.rank == 0 else [0]
        now = time.monotonic()
        heard, sent, mark = dict.fromkeys(others, now), -EVERY_S, np.zeros(1, np.int8)
        while not self._over.wait(POLL_S):
            woken, now = time.monotonic() - now > SILENCE_S / 2, time.monotonic()
            if woken:  # it was this process that stood still: what it has not heard is no news
                heard = dict.fromkeys(others, now)
            if now - sent >= EVERY_S:
                sent = now
                for rank in others:
                    comm.Isend(mark, rank).Free()
            for rank in others:
                while comm.Iprobe(rank):
                    comm.Recv(np.empty(1, np.int8), rank)
                    heard[rank] = now
                if now - heard[rank] > SILENCE_S:
                    self._end(rank)

    def _end(self, rank: int) -> None:
        what = f"{self._name(rank)} has been silent for {SILENCE_S:.0f} s; all processes of the job end"
        print(f"error: {what}; go on with --resume auto", file=sys.stderr, flush=True)
        self._comm.Abort(EXIT_STATUS)
