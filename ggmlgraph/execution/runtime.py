"""`Runtime`: a graph file ready to run and to train, everything by tensor name and numpy array.

    with Runtime("graph.bin", threads=2, batch=16, ctx=64) as rt:
        result = rt.step((tokens, targets), lr=1e-3)

A file is imported and re-sized once; from it programs are made when first needed: one to train, one for each set of
outputs asked for. They share the weights. `at` gives the same weights at another batch and context.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggmlgraph import machine
from ggmlgraph.core import encoding, limits
from ggmlgraph.core.boundary import CoreGraph, exception, lib, matmul_precision_number, new_error
from ggmlgraph.core.importer import apply_flags, import_file, named, read_metadata, resize
from ggmlgraph.core.limits import Limits
from ggmlgraph.errors import GGError, MemoryLimitError, ShapeError, UnsupportedError, UsageError
from ggmlgraph.execution import checkpoint
from ggmlgraph.execution.program import Program, TrainProgram, fuse
from ggmlgraph.execution.roles import Roles, assign
from ggmlgraph.graphfile import metadata
from ggmlgraph.graphfile.metadata import Metadata
from ggmlgraph.table.dialect import INPUT, LOSS, PARAM
from ggmlgraph.table.op import TABLE

FUSIONS = {
    "norm_gain": lib.GG_FUSE_NORM_GAIN,
    "swiglu": lib.GG_FUSE_SWIGLU,
    "cross_entropy": lib.GG_FUSE_CROSS_ENTROPY,
    "attention": lib.GG_FUSE_ATTENTION,
    "accumulate": lib.GG_FUSE_ACCUMULATE,
}
Batch = tuple[ArrayLike, ArrayLike] | Mapping[str, ArrayLike]  # tokens and targets, or every input by name


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step did."""

    loss: float  # before the update, nats per token
    grad_norm: float  # global L2 norm before clipping


class Runtime:
    """One graph file at one batch and context.

    path: graph.bin, in any dialect. threads: default every processor this process may use. batch, ctx: default the
    sizes at export. accumulate: micro-batches per step. fusions: names in FUSIONS of the patterns that become one op.
    matmul_precision: "float32", or "bf16": matrix products round their operands to bfloat16 and add in float32, as
    torch.set_float32_matmul_precision names it; the fused attention computes in float32 either way. limits: the
    largest graph to take from the file. mapped: weights lie in the file instead of in memory of their own, so nothing
    may change it meanwhile; what is written into them stays here.

    One call at a time: a run's threads are its own, but inputs, weights and results lie in memory that all calls share,
    also those of a runtime made by `at`. Runtimes of their own may be used from different threads at once; while one
    runs, other Python threads go on.

    Raises FormatError (a bad file; with the byte offset), UnsupportedError, LimitError, MemoryLimitError (a program
    does not fit `memory_limit` in bytes, default what the machine has free, even where activations are computed again).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        batch: int | None = None,
        ctx: int | None = None,
        accumulate: int = 1,
        memory_limit: int | None = None,
        dialect: str = "auto",
        fusions: Collection[str] = frozenset(FUSIONS),
        limits: Limits = limits.DEFAULT,
        matmul_precision: str = "float32",
        roles: Roles | None = None,
        mapped: bool = False,
    ) -> None:
        matmul_precision_number(matmul_precision)
        base = import_file(path, dialect, limits, mapped=mapped)
        meta = read_metadata(base, path)
        apply_flags(base, meta)
        meta = meta if roles is None else assign(base, meta, roles)
        threads = machine.n_threads() if threads is None else machine.check_threads(threads)
        self._open(base, meta, threads, memory_limit, fusion_mask(fusions), matmul_precision)
        self._resize(base, batch, ctx)
        self.accumulate = accumulate
        for tensor_id, op in zip(named(self.graph, meta.exact), meta.exact.values(), strict=True):
            err = new_error()
            if lib.gg_refine(self.graph.handle, tensor_id, op.encode(), err) < 0:
                raise exception(err, "metadata: ")

    def _open(
        self,
        base: CoreGraph,
        meta: Metadata,
        threads: int,
        memory_limit: int | None,
        fusions: int,
        matmul_precision: str,
    ) -> None:
        self.metadata = meta
        self.threads = threads
        self.memory_limit = memory_limit
        self._fusions = fusions
        self.isa = machine.isa()
        self.matmul_precision = matmul_precision
        self.n_steps = 0  # optimiser steps done, for AdamW's bias correction
        self._loss = -1
        self._train: TrainProgram | None = None
        self._programs: dict[tuple[str, ...], Program] = {}
        self._last: Program | None = None

    def _resize(self, base: CoreGraph, batch: int | None, ctx: int | None) -> None:
        asked = {name: value for name, value in (("batch", batch), ("ctx", ctx)) if value is not None}
        self.sizes, self.graph = dict(self.metadata.sizes), base
        for name, value in asked.items():
            if not 1 <= value <= 1 << 20:
                raise UsageError(f"{name} {value} is not in 1..{1 << 20}")
            if name not in self.sizes and value != dict(zip(("batch", "ctx"), self.window, strict=True))[name]:
                reason = self.metadata.fixed or "it has no named sizes"
                raise UnsupportedError(f"{name} is fixed in this graph: {reason}")
        self.sizes = {name: asked.get(name, value) for name, value in self.sizes.items()}
        for name, most in self.metadata.limits.items():
            if self.sizes.get(name, 0) > most:
                raise UsageError(f"{name} is {self.sizes[name]}, the model takes at most {most}")
        self.graph = resize(base, self.metadata, self.sizes)

    def at(self, batch: int | None = None, ctx: int | None = None) -> Runtime:
        """The same weights at another batch or context, default as here; lives as long as this one."""
        other = object.__new__(Runtime)
        other._open(self.graph, self.metadata, self.threads, self.memory_limit, self._fusions, self.matmul_precision)
        other._resize(self.graph, batch or self.sizes.get("batch"), ctx or self.sizes.get("ctx"))
        other.accumulate = 1
        return other

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads and free the programs' memory."""
        self._train = self._last = None
        self._programs.clear()

    # ------------------------------------------------------------ names and arrays

    @property
    def params(self) -> list[str]:
        """Names of the trained parameters, in the graph's order."""
        return [self.graph.name(i) for i in self._ids(PARAM)]

    @property
    def n_params(self) -> int:
        """Number of trained values."""
        return sum(int(np.prod(self.graph.shape(i))) for i in self._ids(PARAM))

    @property
    def window(self) -> tuple[int, int]:
        """(batch, ctx) of the tokens one run takes. Raises UnsupportedError if the graph is no language model."""
        for name, kind in self.metadata.inputs.items():
            if kind == "tokens":
                batch, ctx = self.graph.shape(self._find(name), 2)
                return batch, ctx
        raise UnsupportedError("the graph does not say which input takes the tokens")

    @property
    def inputs(self) -> list[str]:
        return [self.graph.name(i) for i in self._ids(INPUT)]

    def _ids(self, flag: int) -> Iterator[int]:
        return (i for i in self.graph.flagged(flag) if self.graph.tensor(i).op == 0)

    def _writes(self) -> Iterator[int]:
        """Nodes that write into leafs, a key-value cache say: every run does them."""
        return (i for i in range(len(self.graph)) if lib.gg_writes_leaf(self.graph.handle, i))

    def _find(self, name: str) -> int:
        tensor_id = self.graph.find(name)
        if tensor_id < 0:
            raise GGError(f"the graph has no tensor {name!r}")
        return tensor_id

    def _leaf(self, name: str) -> NDArray[Any]:
        """A view of a leaf; of a type that numpy has not, of its bytes, row by row."""
        tensor_id = self._find(name)
        if self.graph.tensor(tensor_id).op != 0:
            raise GGError(f"{name!r} is computed, not stored")
        dtype, shape = self.graph.dtype(tensor_id), self.graph.shape(tensor_id)
        if dtype not in encoding.NUMPY:
            dtype, shape = "u8", (*shape[:-1], encoding.nbytes(dtype, shape[-1]))
        return np.frombuffer(self.graph.leaf_bytes(tensor_id), encoding.NUMPY.get(dtype, np.uint8)).reshape(shape)

    def input(self, name: str) -> NDArray[Any]:
        """The memory of an input or parameter, as it lies in the graph: shape and dtype are what `set` takes."""
        return self._leaf(name)

    def tokenizer_bytes(self) -> bytes | None:
        """The tokenizer that travels in the file, for `tokenizer.from_bytes`."""
        tensor_id = self.graph.find(metadata.TOKENIZER_LEAF)
        return None if tensor_id < 0 else bytes(self.graph.leaf_bytes(tensor_id))

    def set(self, name: str, array: ArrayLike) -> None:
        """Copy values into an input or weight. Raises ShapeError if shape or dtype do not fit.

        A weight of a type that numpy has not (bf16, q8_0, ...) takes its bytes, uint8, whole rows of them.
        """
        leaf, values = self._leaf(name), np.asarray(array)
        same_kind = np.can_cast(values.dtype, leaf.dtype, "same_kind")
        if values.size != leaf.size or np.squeeze(values).shape != np.squeeze(leaf).shape or not same_kind:
            raise ShapeError(f"{name} is {leaf.dtype}{list(leaf.shape)}, got {values.dtype}{list(values.shape)}")
        leaf[...] = values.reshape(leaf.shape)

    def get(self, name: str) -> NDArray[Any]:
        """A copy of a tensor's values: of a weight or input, or of an output of the last `forward` or `step`.

        Where numpy has not the type, float32.
        """
        tensor_id = self._find(name)
        dtype = self.graph.dtype(tensor_id)
        if self.graph.tensor(tensor_id).op == 0 and dtype not in encoding.NUMPY:
            return encoding.decode(dtype, self._leaf(name)).reshape(self.graph.shape(tensor_id))
        if self.graph.tensor(tensor_id).op == 0:
            return self._leaf(name).copy()
        program = self._last
        found = program.graph.find(name) if program else -1
        if program is None or found < 0:
            raise GGError(f"{name!r} was not computed by the last run; ask for it with forward({name!r})")
        return program.array(found).copy()

    def gradient(self, name: str) -> NDArray[np.float32]:
        """d loss / d parameter, as the last `step` or `backward` computed it."""
        train = self.train_program
        if name not in train.params:
            raise GGError(f"{name!r} is not a trained parameter")
        grad = lib.gg_grad_of(train.graph.handle, train.params[name])
        return train.array(grad).reshape(self._leaf(name).shape).copy()

    # ------------------------------------------------------------ running

    def _fused(self, roots: list[int], *, train: bool) -> CoreGraph:
        for i in self._ids(INPUT):
            self.graph.leaf_bytes(i)  # inputs exist before the programs do, so that all of them share one memory
        roots = list(dict.fromkeys([*roots, *self._writes()]))
        return fuse(self.graph, roots, self._fusions & lib.GG_FUSE_DIFFERENTIABLE, train=train)

    def _limit(self) -> int | None:
        return self.memory_limit if self.memory_limit is not None else machine.available_memory()

    def _fits(self, program: Program) -> bool:
        limit = self._limit()
        return limit is None or program.cost().nbytes <= limit

    def check_memory(self, program: Program) -> None:
        """Raises MemoryLimitError if the program does not fit."""
        if not self._fits(program):
            raise MemoryLimitError(
                f"needs {program.cost().nbytes / 2**20:.0f} MiB at batch {self.sizes.get('batch')} and ctx "
                f"{self.sizes.get('ctx')}, {(self._limit() or 0) / 2**20:.0f} MiB are available"
            )

    @property
    def train_program(self) -> TrainProgram:
        """The training graph: forward, backward, optimiser. It computes as little again as the memory limit allows."""
        if self._train is None:
            self._train = self._fitting()
        return self._train

    def train_program_at(self, recompute: int) -> TrainProgram:
        """The training graph at one level of recomputation, 0 to its `max_recompute`."""
        if self._loss < 0:
            losses = self.graph.flagged(LOSS)
            if len(losses) != 1:
                raise UnsupportedError(f"training needs one loss, the graph has {len(losses)}")
            self._loss = self._mean_of(losses[0])
        forward = self._fused([self._loss], train=True)
        return TrainProgram(
            forward, self.accumulate, self.isa, self.threads, self.matmul_precision, self._fusions, recompute
        )

    def _mean_of(self, loss: int) -> int:
        """What a micro-batch adds to the loss: its share, unless loss_weights see to that."""
        if self.accumulate == 1 or "loss_weights" in self.metadata.inputs.values():
            return loss
        self.graph.set_flags(loss, self.graph.tensor(loss).flags & ~LOSS)
        mean = self.graph.node(TABLE["scale"], [loss], {"s": 1.0 / self.accumulate})
        self.graph.set_flags(mean, LOSS)
        return mean

    def _fitting(self) -> TrainProgram:
        program = least = self.train_program_at(0)
        while not self._fits(program) and program.recompute < program.max_recompute:
            program = self.train_program_at(program.recompute + 1)
            least = min(least, program, key=lambda p: p.cost().nbytes)
        self.check_memory(least if not self._fits(program) else program)
        return program

    def fused(self, *outputs: str) -> CoreGraph:
        """The forward graph of these outputs, with patterns of ops fused."""
        return self._fused([self._find(name) for name in outputs], train=False)

    def program(self, *outputs: str) -> Program:
        """What runs the forward graph of these outputs."""
        if outputs not in self._programs:
            program = Program(self.fused(*outputs), self.isa, self.threads, self.matmul_precision)
            self.check_memory(program)
            self._programs[outputs] = program
        return self._programs[outputs]

    def feed(self, tokens: ArrayLike, targets: ArrayLike | None = None, weight: ArrayLike | None = None) -> None:
        """Fill the inputs of a language model: tokens, targets int32 (batch, ctx); loss_weights `weight`, float32
        (batch, ctx) or one for all, default 1/n_tokens."""
        values = self._by_name(tokens, targets)
        self.feed_arrays({name: array for name, array in values.items() if array is not None}, weight)

    def _by_name(self, tokens: Any, targets: Any) -> dict[str, Any]:
        roles = {"tokens": tokens, "targets": targets}
        return {name: roles[kind] for name, kind in self.metadata.inputs.items() if kind in roles}

    def feed_arrays(self, arrays: Mapping[str, ArrayLike], weight: ArrayLike | None = None, n_parts: int = 1) -> None:
        """Fill inputs by name. Positions and loss_weights, where the graph has them, are set too, the latter to
        `weight`, default 1/n for n rows in all of n_parts micro-batches."""
        for name, kind in self.metadata.inputs.items():
            if kind == "positions":
                leaf = self._leaf(name)
                leaf[...] = np.arange(leaf.size, dtype=np.int32).reshape(leaf.shape)
            elif kind == "loss_weights":
                leaf = self._leaf(name)
                leaf[...] = 1.0 / (leaf.size * n_parts) if weight is None else weight
        for name, array in arrays.items():
            self.set(name, array)

    def forward(self, *outputs: str, tokens: ArrayLike | None = None, targets: ArrayLike | None = None) -> list[Any]:
        """Run up to `outputs` (default: the loss) and return copies of them. Inputs as set, or from the arguments."""
        if tokens is not None:
            self.feed(tokens, targets)
        program = self.program(*(outputs or ("loss",)))
        program.run()
        self._last = program
        return [self.get(name) for name in outputs or ("loss",)]

    def loss(self, tokens: ArrayLike, targets: ArrayLike, weight: ArrayLike | None = None) -> float:
        """Loss of one batch, without gradients; arguments as `feed` takes them.

        Where a training program exists, its forward half is run, so that evaluation needs no memory of its own.
        """
        self.feed(tokens, targets, weight)
        return self._run_loss()

    def loss_of(self, arrays: Mapping[str, ArrayLike]) -> float:
        """Loss of inputs by name, without gradients."""
        self.feed_arrays(arrays)
        return self._run_loss()

    def _run_loss(self) -> float:
        train = self._train
        if train is None:
            return float(self.forward("loss")[0].item())
        train.run(0, train.loss + 1)
        self._last = train
        return float(train.array(train.loss).item())

    def backward(self, batch: Batch) -> float:
        """Gradients of one batch, no update; returns the loss. `gradient` then reads them."""
        train = self.train_program
        arrays = batch if isinstance(batch, Mapping) else self._by_name(*batch)
        loss = 0.0
        for k in range(self.accumulate):
            if train.keep >= 0:
                train.leaf(train.keep)[...] = float(k > 0)
            self.feed_arrays(
                {name: self._part(name, array, k) for name, array in arrays.items()}, None, self.accumulate
            )
            train.run(0, train.n_gradient)
            loss += float(train.array(train.loss).item())
        self._last = train
        return loss

    def _part(self, name: str, array: ArrayLike, k: int) -> NDArray[Any]:
        """What an input gets of a batch in micro-batch k: the k-th of `accumulate` equal parts along the first axis."""
        values, shape = np.asarray(array), self._leaf(name).shape
        n = self.accumulate
        if values.shape not in ((n * shape[0], *shape[1:]), (n, *shape)):
            raise ShapeError(f"{name}: a step takes {n} x {list(shape)}, got {list(values.shape)}")
        part: NDArray[Any] = values.reshape(n, *shape)[k]
        return part

    def step(
        self,
        batch: Batch,
        *,
        lr: float,
        weight_decay: float = 0.1,
        clip: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> StepResult:
        """One AdamW update on tokens, targets int32 (batch * accumulate, ctx); or on inputs by name, each with
        `accumulate` times the graph's first axis.

        clip: largest global gradient norm, 0 for none. A gradient norm that is not finite changes nothing.
        """
        loss = self.backward(batch)
        train = self.train_program
        correction = [1.0 - beta ** (self.n_steps + 1) for beta in betas]
        train.leaf(train.hyper)[...] = [lr, *betas, eps, weight_decay, clip, *correction]
        train.run(train.n_gradient)
        grad_norm = float(np.sqrt(train.array(train.sum_sqr).item()))
        self.n_steps += math.isfinite(grad_norm)
        return StepResult(loss, grad_norm)

    # ------------------------------------------------------------ state

    def weights(self) -> dict[str, NDArray[Any]]:
        """Views of the weights by parameter name."""
        return {name: self._leaf(name) for name in self.params}

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Views of the weights by parameter name, and of AdamW's moments as "m.NAME" and "v.NAME"."""
        weights = self.weights()
        moments = {}
        for name, ids in self.train_program.moments.items():
            for letter, tensor_id in zip("mv", ids, strict=True):
                moments[f"{letter}.{name}"] = self.train_program.leaf(tensor_id).reshape(weights[name].shape)
        return weights, moments

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write weights, optimiser state and step count to a new directory, at once or not at all."""
        checkpoint.save(self, Path(directory), {})

    def load(self, directory: str | os.PathLike[str]) -> None:
        """Read what `save` wrote. Raises CheckpointError if it is damaged or of another graph."""
        checkpoint.load(self, Path(directory))


def fusion_mask(names: Collection[str]) -> int:
    """GG_FUSE_* of names in FUSIONS, together. Raises UsageError for any other."""
    if unknown := sorted(set(names) - set(FUSIONS)):
        raise UsageError(f"fusion {unknown[0]!r} is not one of {', '.join(FUSIONS)}")
    return sum(FUSIONS[name] for name in set(names))
