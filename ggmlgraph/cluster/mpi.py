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
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ggmlgraph.cluster.heartbeat import Heartbeat
from ggmlgraph.errors import GGError, UnsupportedError
from ggmlgraph.execution.slots import Facts, Kind, TreeSum, Values, blocks_of, slots_of

SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_NTASKS")  # set by launchers
ALIGNMENT = 16  # values: ranges begin at cache lines
HOST_NBYTES = 64
SPIN_S, PAUSE_S = 0.001, 0.0002  # how long to wait for others at full speed, and how often to look after that


class Order(msgspec.Struct, frozen=True):
    """What rank 0 has the others do."""

    kind: Kind
    facts: dict[str, Any]
    arrays: dict[str, tuple[str, list[int]]]  # which follow: dtypes and shapes


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
    return MpiRanks(MPI)


class MpiRanks:
    """All ranks of a job. What one calls the others call too, in the same order."""

    def __init__(self, mpi: Any) -> None:
        self._mpi, self._comm = mpi, mpi.COMM_WORLD
        self.rank: int = self._comm.rank
        self.size: int = self._comm.size
        self._received: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self._hosts = [name.rstrip(b"\0").decode(errors="replace") for name in self._all(_host())]
        self.n_beside = self._all(_place()).count(_place())  # ranks on the same processors, this one too
        self._heartbeat: Heartbeat | None = None
        if mpi.Query_thread() == mpi.THREAD_MULTIPLE:
            self._heartbeat = Heartbeat(self._comm.Dup(), self.name)
            self._heartbeat.start()

    def name(self, rank: int | None = None) -> str:
        """What a rank, default this one, is called in messages."""
        rank = self.rank if rank is None else rank
        return f"rank {rank} on {self._hosts[rank]}"

    def close(self) -> None:
        """When no rank needs another any more."""
        self._comm.Barrier()
        if self._heartbeat:
            self._heartbeat.stop()

    # ------------------------------------------------------------ leading and following

    def lead(self, kind: Kind, facts: Facts, arrays: Mapping[str, NDArray[Any]]) -> None:
        """See `Ranks`."""
        if self.rank == 0 and self.size > 1:
            described = {name: (array.dtype.str, list(array.shape)) for name, array in arrays.items()}
            data = msgspec.json.encode(Order(kind, dict(facts), described))
            self.share([np.array([len(data)], np.int64), np.frombuffer(data, np.uint8)])
            self.share(np.ascontiguousarray(array) for array in arrays.values())

    def order(self) -> tuple[Order, dict[str, NDArray[Any]]]:
        """By others than rank 0: what that one has them do next."""
        length = np.empty(1, np.int64)
        self.share([length])
        data = np.empty(int(length[0]), np.uint8)
        self.share([data])
        order = msgspec.json.decode(data.tobytes(), type=Order)
        arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in order.arrays.items()}
        self.share(arrays.values())
        return order, arrays

    def share(self, arrays: Iterable[NDArray[Any]]) -> None:
        """See `Ranks`; each array in one piece."""
        for array in arrays:
            if not array.flags.c_contiguous:
                raise GGError("only arrays that lie in one piece can be shared")
            self._wait([self._comm.Ibcast(array.reshape(-1).view(np.uint8), 0)])

    # ------------------------------------------------------------ sums

    def total(self, mine: TreeSum, n_slots: int) -> Values:
        """See `Ranks`; the memory of a block of `mine` becomes the sum."""
        blocks = [values for _, values in mine.blocks()]
        bounds = self._bounds(len(blocks[0]))
        here = slice(bounds[self.rank], bounds[self.rank + 1])
        theirs, requests = self._receive(n_slots, here)
        self._wait([*requests, *self._send(blocks, bounds)])
        whole, in_order = TreeSum(here.stop - here.start), iter(theirs)
        for rank in range(self.size):
            own = iter(values[here] for values in blocks)
            for block in blocks_of(slots_of(rank, self.size, n_slots)):
                whole.add(block, next(own if rank == self.rank else in_order))
        total = blocks[0]
        total[here] = whole.total()
        received = [total, np.diff(bounds), bounds[:-1], self._mpi.FLOAT]
        self._wait([self._comm.Iallgatherv(self._mpi.IN_PLACE, received)])
        return total

    def _bounds(self, n: int) -> list[int]:
        """Where the ranges of the ranks begin, and the end."""
        n_lines = -(-n // ALIGNMENT)
        return [min(n, rank * n_lines // self.size * ALIGNMENT) for rank in range(self.size)] + [n]

    def _send(self, blocks: list[Values], bounds: list[int]) -> Iterator[Any]:
        for rank in range(self.size):
            if rank != self.rank:
                for tag, values in enumerate(blocks):
                    yield self._comm.Isend(values[bounds[rank] : bounds[rank + 1]], rank, tag)

    def _receive(self, n_slots: int, here: slice) -> tuple[NDArray[np.float32], list[Any]]:
        """Memory for the others' blocks in the order of their slots, and what tells when it is filled."""
        senders = [
            (rank, tag)
            for rank in range(self.size)
            if rank != self.rank
            for tag, _ in enumerate(blocks_of(slots_of(rank, self.size, n_slots)))
        ]
        shape = (len(senders), here.stop - here.start)
        if self._received.shape != shape:
            self._received = np.empty(shape, np.float32)
        return self._received, [self._comm.Irecv(row, *of) for row, of in zip(self._received, senders, strict=True)]

    def gathered(self, numbers: list[float]) -> list[float]:
        """See `Ranks`."""
        counts = np.empty(self.size, np.int64)
        self._wait([self._comm.Iallgather(np.array([len(numbers)], np.int64), counts)])
        found = np.empty(int(counts.sum()), np.float64)
        self._wait([self._comm.Iallgatherv(np.array(numbers, np.float64), [found, counts])])
        return found.tolist()

    def _all(self, data: bytes) -> list[bytes]:
        """All ranks' bytes, of the same length on each."""
        found = np.empty((self.size, len(data)), np.uint8)
        self._comm.Allgather(np.frombuffer(data, np.uint8), found)
        return [row.tobytes() for row in found]

    def _wait(self, requests: list[Any]) -> None:
        """Until all is done. MPI itself would take a processor for it, which the others may need."""
        until = time.perf_counter() + SPIN_S
        while not self._mpi.Request.Testall(requests):
            if time.perf_counter() > until:
                time.sleep(PAUSE_S)


def _host() -> bytes:
    return socket.gethostname().encode()[:HOST_NBYTES].ljust(HOST_NBYTES, b"\0")


def _place() -> bytes:
    """A digest of the host and of the processors that this process may use."""
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return hashlib.sha256(_host() + repr(processors).encode()).digest()


def abort(status: int) -> None:
    """End all processes of this job: without this one the others would wait for ever."""
    from mpi4py import MPI

    MPI.COMM_WORLD.Abort(status)
