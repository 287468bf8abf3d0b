"""A graph that runs: a program with its plan, and the pool of threads it runs on.

Everything here goes by tensor ids; `Runtime` puts names and batches to them. Used by `execution`, by decoding and by
tests of single ops.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.core import encoding
from ggmlgraph.core.boundary import call, ffi, lib, memory
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.levels import level_argument, matmul_precision_number
from ggmlgraph.errors import GGError


class Pool:
    """Threads that programs run on, one after the other; the first run starts them."""

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self.handle = ffi.gc(call(lib.gg_pool_new, n_threads), lib.gg_pool_free)


@dataclass(frozen=True)
class Cost:
    """What a program needs, known before it runs."""

    leaf_nbytes: int  # weights, optimiser state, inputs
    arena_nbytes: int  # activations and gradients
    live_nbytes: int  # of these at most at once: no arena can be smaller
    work_nbytes: int  # scratch of the kernels
    flops: float  # of the matrix products of one run

    @property
    def own_nbytes(self) -> int:
        """What is no other program's: all but the leafs."""
        return self.arena_nbytes + self.work_nbytes

    @property
    def nbytes(self) -> int:
        return self.leaf_nbytes + self.own_nbytes


class Program:
    """A fused graph with its plan: what is run. isa: a level's name, None for the best."""

    def __init__(self, graph: CoreGraph, pool: Pool, isa: str | None, matmul_precision: str = "float32") -> None:
        self.graph, self.pool = graph, pool
        arguments = (level_argument(isa), matmul_precision_number(matmul_precision))
        self.handle = ffi.gc(call(lib.gg_program_new, graph.handle, pool.handle, *arguments), lib.gg_program_free)
        self.end = len(graph)
        self.has_run = False  # it has taken its memory

    def __repr__(self) -> str:
        cost = self.cost()
        sizes = f"{cost.flops / 1e9:,.2f} GFLOP, {cost.nbytes / 2**20:,.1f} MiB"
        return f"<{type(self).__name__}: {self.end:,} tensors, {sizes}>"

    def run(self, begin: int = 0, end: int | None = None) -> None:
        """Compute nodes begin .. end, default all."""
        self.has_run = True
        call(lib.gg_program_run, self.handle, begin, self.end if end is None else end)

    @contextmanager
    def profile(self) -> Iterator[NDArray[np.float64]]:
        """Seconds spent in each node by the runs inside the `with`, by tensor id."""
        seconds = np.zeros(self.end)
        lib.gg_program_profile(self.handle, ffi.from_buffer("double[]", seconds))
        try:
            yield seconds
        finally:
            lib.gg_program_profile(self.handle, ffi.NULL)

    def flops(self, begin: int, end: int | None = None) -> float:
        """Floating-point operations of matrix products: of one node, or of nodes begin .. end."""
        return float(lib.gg_program_flops(self.handle, begin, begin + 1 if end is None else end))

    def offset(self, tensor_id: int) -> int:
        """Bytes into the program's own memory; -1 for what lies in a leaf."""
        return int(lib.gg_program_offset(self.handle, tensor_id))

    def cost(self) -> Cost:
        return Cost(
            self.graph.leaf_nbytes(),
            lib.gg_program_arena_nbytes(self.handle),
            lib.gg_program_live_nbytes(self.handle),
            lib.gg_program_work_nbytes(self.handle),
            lib.gg_program_flops(self.handle, 0, self.end),
        )

    def leaf(self, tensor_id: int) -> NDArray[Any]:
        """A leaf's memory, flat and writable, before any run too."""
        return np.frombuffer(self.graph.leaf_bytes(tensor_id), encoding.numpy(self.graph.dtype(tensor_id)))

    def has_values(self, tensor_id: int) -> bool:
        """Whether `array` gives a tensor's values."""
        return bool(lib.gg_program_data(self.handle, tensor_id) != ffi.NULL)

    def array(self, tensor_id: int, rank: int | None = None) -> NDArray[Any]:
        """A tensor's values as the last run left them: a view, whose values last until the next run.

        Outputs and gradients of parameters keep their memory; another tensor's values are there as long as a node is
        still to read them, and when it was the last one computed. Raises GGError if they are not there.
        """
        data = lib.gg_program_data(self.handle, tensor_id)
        if data == ffi.NULL:
            raise GGError(
                f"{self.graph.label(tensor_id)} has no values: it was not computed, or its memory was used again"
            )
        dtype = encoding.numpy(self.graph.dtype(tensor_id))
        held = memory(self, data, self.graph.nbytes(tensor_id))
        view = np.ndarray(self.graph.shape(tensor_id, 4), dtype, held, strides=self.graph.strides(tensor_id))
        return view.reshape(self.graph.shape(tensor_id, rank))
