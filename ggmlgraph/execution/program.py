"""A graph ready to run: a `gg_program` that is planned and runs, and the training graph made for it.

Everything here goes by tensor ids; `Runtime` (runtime.py) puts names and batches to them. Used by it, by decoding.py
and by tests of single ops.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.core import encoding
from ggmlgraph.core.boundary import CoreGraph, exception, ffi, lib, matmul_precision_number, new_error
from ggmlgraph.errors import GGError
from ggmlgraph.table.dialect import LOSS, OUTPUT


@dataclass(frozen=True)
class Cost:
    """What a program needs, known before it runs."""

    leaf_nbytes: int  # weights, optimiser state, inputs
    arena_nbytes: int  # activations and gradients
    live_nbytes: int  # of these at most at once: no arena can be smaller
    work_nbytes: int  # scratch of the kernels
    flops: float  # of the matrix products of one run

    @property
    def nbytes(self) -> int:
        return self.leaf_nbytes + self.arena_nbytes + self.work_nbytes


class Program:
    """A fused graph with its plan: what is run."""

    def __init__(self, graph: CoreGraph, isa: str | None, threads: int, matmul_precision: str = "float32") -> None:
        self.graph = graph
        err = new_error()
        level, precision = ffi.NULL if isa is None else isa.encode(), matmul_precision_number(matmul_precision)
        handle = lib.gg_program_new(graph.handle, level, precision, threads, err)
        if handle == ffi.NULL:
            raise exception(err)
        self.handle = ffi.gc(handle, lib.gg_program_free)
        self.end = len(graph)

    def run(self, begin: int = 0, end: int | None = None) -> None:
        err = new_error()
        if lib.gg_program_run(self.handle, begin, self.end if end is None else end, err) < 0:
            raise exception(err)

    @contextmanager
    def profile(self) -> Iterator[NDArray[np.float64]]:
        """Seconds spent in each node by the runs inside the `with`, by tensor id."""
        seconds = np.zeros(self.end)
        lib.gg_program_profile(self.handle, ffi.from_buffer("double[]", seconds))
        try:
            yield seconds
        finally:
            lib.gg_program_profile(self.handle, ffi.NULL)

    def flops(self, tensor_id: int) -> float:
        """Floating-point operations of one node; 0 for what is no matrix product."""
        return float(lib.gg_program_flops(self.handle, tensor_id, tensor_id + 1))

    def cost(self) -> Cost:
        leafs = (i for i in range(self.end) if self.graph.tensor(i).op == 0)
        return Cost(
            sum(lib.gg_nbytes(self.graph.handle, i) for i in leafs),
            lib.gg_program_arena_nbytes(self.handle),
            lib.gg_program_live_nbytes(self.handle),
            lib.gg_program_work_nbytes(self.handle),
            lib.gg_program_flops(self.handle, 0, self.end),
        )

    def leaf(self, tensor_id: int) -> NDArray[Any]:
        """A leaf's memory, flat and writable, before any run too."""
        return np.frombuffer(self.graph.leaf_bytes(tensor_id), encoding.numpy(self.graph.dtype(tensor_id)))

    def array(self, tensor_id: int) -> NDArray[Any]:
        """A tensor's values as the last run left them: a view, valid until the next run."""
        data = lib.gg_program_data(self.handle, tensor_id)
        if data == ffi.NULL:
            raise GGError(f"{self.graph.name(tensor_id) or tensor_id} has no values before the first run")
        buffer = ffi.buffer(data, lib.gg_nbytes(self.graph.handle, tensor_id))
        dtype = encoding.numpy(self.graph.dtype(tensor_id))
        shape = self.graph.shape(tensor_id, 4)
        strides = list(reversed(self.graph.strides(tensor_id)))
        view = np.ndarray(shape, dtype, buffer, strides=strides)
        return view.reshape(self.graph.shape(tensor_id))


def fuse(graph: CoreGraph, roots: list[int], fusions: int, *, train: bool = False) -> CoreGraph:
    """What `roots` and gradients need of a graph, with patterns of ops fused: a sum of GG_FUSE_* says which."""
    err = new_error()
    handle = lib.gg_fuse(graph.handle, len(roots), roots, int(train), fusions, err)
    if handle == ffi.NULL:
        raise exception(err)
    return graph.derived(handle)


def differentiate(forward: CoreGraph, fusions: int, recompute: int) -> tuple[CoreGraph, int]:
    """Forward and backward pass of the one loss, and how far `recompute` can go. Appends to `forward`."""
    err = new_error()
    loss = forward.flagged(LOSS)[0]
    if lib.gg_grad(forward.handle, loss, err) < 0:
        raise exception(err, forward.name(err.node) + ": " if err.node >= 0 else "")
    n_levels = lib.gg_recompute_levels(forward.handle, loss, err)
    if n_levels < 0:
        raise exception(err)
    if recompute:
        handle = lib.gg_recompute(forward.handle, loss, recompute, err)
        if handle == ffi.NULL:
            raise exception(err)
        forward = forward.derived(handle)
    return fuse(forward, forward.flagged(OUTPUT), fusions & ~lib.GG_FUSE_DIFFERENTIABLE), n_levels


class TrainProgram(Program):
    """Forward, backward and AdamW of one loss; node numbers that divide its run.

    recompute: how much of the forward pass is computed again instead of kept, 0 to `max_recompute`.
    """

    def __init__(
        self,
        forward: CoreGraph,
        accumulate: int,
        isa: str | None,
        threads: int,
        matmul_precision: str,
        fusions: int,
        recompute: int = 0,
    ) -> None:
        self.recompute = recompute
        forward, self.max_recompute = differentiate(forward, fusions, recompute)
        self.loss = forward.flagged(LOSS)[0]
        err = new_error()
        self.keep = lib.gg_accumulate(forward.handle, err) if accumulate > 1 else -1
        if accumulate > 1 and self.keep < 0:
            raise exception(err)
        self.n_gradient = len(forward)
        if lib.gg_adamw(forward.handle, err) < 0:
            raise exception(err)
        self.hyper = forward.find("adamw.hyper")
        self.params: dict[str, int] = {}
        self.moments: dict[str, tuple[int, int]] = {}
        self.sum_sqr = -1
        for i in range(self.n_gradient, len(forward)):
            t = forward.tensor(i)
            if forward.op(i) == "adamw":
                self.params[forward.name(t.src[0])] = t.src[0]
                self.moments[forward.name(t.src[0])] = (t.src[2], t.src[3])
                self.sum_sqr = t.src[5]
        super().__init__(forward, isa, threads, matmul_precision)
