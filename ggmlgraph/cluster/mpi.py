"""The processes of an MPI job, which share the slots of every step and hold the same weights, bit for bit.

MPI carries bytes and adds nothing up: its own sums depend on the number of ranks, on the algorithm and on the size of a
message. Each rank receives one range of the gradient from all others, adds it up along the tree of slots
(execution/slots.py) and sends it to all: 2 * (size - 1) / size times the gradient each way, as a ring does, where the
number of ranks divides the slots and is a power of two; where it is not, up to log2(slots) times the first half of it.

Used by `ggmlgraph train` under mpirun or srun.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.errors import GGError, UnsupportedError, UsageError
from ggmlgraph.execution.slots import TreeSum, Values, blocks_of, slots_of

SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_NTASKS")  # set by launchers
ALIGNMENT = 16  # values: ranges begin at cache lines
HOST_NBYTES = 64
DIGEST_NBYTES = 32


def launched() -> int:
    """How many processes a launcher says there are; 1 without one."""
    counts = [os.environ.get(name, "") for name in SIZES]
    return max([1, *(int(count) for count in counts if count.isdecimal())])


def world() -> MpiRanks:
    """All processes of this job. Raises UnsupportedError where mpi4py is missing or sees other processes than the
    launcher started."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        why = f": {str(error).splitlines()[0]}" if isinstance(error, RuntimeError) else ""
        raise UnsupportedError(
            f"training on several processes needs mpi4py and an MPI{why}: pip install 'ggmlgraph[mpi]'"
        ) from None
    found, said = MPI.COMM_WORLD.size, launched()
    if found != said:
        raise UnsupportedError(
            f"the launcher started {said} processes, mpi4py sees {found}: they are of different MPIs; "
            "start them with the mpirun of the one that mpi4py was built with"
        )
    return MpiRanks(MPI.COMM_WORLD)


class MpiRanks:
    """The ranks of a communicator. Every method is called by all of them, in the same order."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.rank: int = comm.rank
        self.size: int = comm.size
        self._received: NDArray[np.float32] = np.empty((0, 0), np.float32)

    # ------------------------------------------------------------ sums

    def total(self, mine: TreeSum, n_slots: int) -> Values:
        """See `Ranks`; the memory of a block of `mine` becomes the sum."""
        blocks = [values for _, values in mine.blocks()]
        bounds = self._bounds(len(blocks[0]))
        requests = self._send(blocks, bounds)
        here = slice(bounds[self.rank], bounds[self.rank + 1])
        theirs = self._receive(n_slots, here, requests)
        for request in requests:
            request.Wait()
        whole, theirs_in_order = TreeSum(here.stop - here.start), iter(theirs)
        for rank in range(self.size):
            own = iter(values[here] for values in blocks)
            for block in blocks_of(slots_of(rank, self.size, n_slots)):
                whole.add(block, next(own if rank == self.rank else theirs_in_order))
        total = blocks[0]
        total[here] = whole.total()
        counts = np.diff(bounds)
        self._comm.Allgatherv(_in_place(), [total, counts, bounds[:-1], _float()])
        return total

    def _bounds(self, n: int) -> list[int]:
        """Where the ranges of the ranks begin, and the end."""
        n_lines = -(-n // ALIGNMENT)
        return [min(n, rank * n_lines // self.size * ALIGNMENT) for rank in range(self.size)] + [n]

    def _send(self, blocks: list[Values], bounds: list[int]) -> list[Any]:
        others = [rank for rank in range(self.size) if rank != self.rank]
        return [
            self._comm.Isend(values[bounds[rank] : bounds[rank + 1]], rank, tag)
            for rank in others
            for tag, values in enumerate(blocks)
        ]

    def _receive(self, n_slots: int, here: slice, requests: list[Any]) -> NDArray[np.float32]:
        """Memory for the others' blocks in the order of their slots, of which `requests` tell when it is filled."""
        from_others = [
            (rank, tag)
            for rank in range(self.size)
            if rank != self.rank
            for tag, _ in enumerate(blocks_of(slots_of(rank, self.size, n_slots)))
        ]
        shape = (len(from_others), here.stop - here.start)
        if self._received.shape != shape:
            self._received = np.empty(shape, np.float32)
        requests += [
            self._comm.Irecv(row, rank, tag) for row, (rank, tag) in zip(self._received, from_others, strict=True)
        ]
        return self._received

    # ------------------------------------------------------------ the same everywhere

    def gathered(self, numbers: list[float]) -> list[float]:
        """See `Ranks`."""
        counts = np.empty(self.size, np.int64)
        self._comm.Allgather(np.array([len(numbers)], np.int64), counts)
        found = np.empty(int(counts.sum()), np.float64)
        self._comm.Allgatherv(np.array(numbers, np.float64), [found, counts])
        return [float(x) for x in found]

    def agree(self, facts: Mapping[str, str]) -> None:
        """Raise UsageError, on all ranks, unless all have the same facts: it names one that has not."""
        hosts = self._all(_host())
        for name, value in facts.items():
            found = self._all(hashlib.sha256(value.encode()).digest())
            others = [rank for rank in range(self.size) if found[rank] != found[0]]
            if others:
                host = hosts[others[0]].rstrip(b"\0").decode(errors="replace")
                raise UsageError(f"rank {others[0]} on {host}: {name} is not that of rank 0")

    def _all(self, data: bytes) -> list[bytes]:
        """All ranks' bytes, of the same length on each."""
        found = np.empty((self.size, len(data)), np.uint8)
        self._comm.Allgather(np.frombuffer(data, np.uint8), found)
        return [row.tobytes() for row in found]

    def share(self, arrays: list[NDArray[Any]]) -> None:
        """Rank 0's values in place of the others'."""
        for array in arrays:
            if not array.flags.c_contiguous:
                raise GGError("only arrays that lie in one piece can be shared")
            self._comm.Bcast(array.reshape(-1).view(np.uint8), 0)


def _host() -> bytes:
    return socket.gethostname().encode()[:HOST_NBYTES].ljust(HOST_NBYTES, b"\0")


def _in_place() -> Any:
    from mpi4py import MPI

    return MPI.IN_PLACE


def _float() -> Any:
    from mpi4py import MPI

    return MPI.FLOAT
