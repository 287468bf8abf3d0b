"""`Runtime`: a graph file ready to run and to train, everything by tensor name and numpy array.

    with Runtime("graph.bin", threads=2, batch=16, ctx=64) as rt:
        result = rt.step((tokens, targets), lr=1e-3)

Used by everything that needs a model's numbers.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggmlgraph import machine
from ggmlgraph.core import limits, passes
from ggmlgraph.core.levels import isa_levels, matmul_precision_number
from ggmlgraph.core.limits import Limits
from ggmlgraph.errors import GGError, UsageError
from ggmlgraph.execution import checkpoint, optimizers
from ggmlgraph.execution.feeder import Batch, Feeder
from ggmlgraph.execution.namedgraph import NamedGraph, open_graph
from ggmlgraph.execution.optimizers import Optimizer
from ggmlgraph.execution.program import Settings
from ggmlgraph.execution.programs import Pools, Programs
from ggmlgraph.execution.roles import Roles
from ggmlgraph.execution.session import Session, in_turn
from ggmlgraph.execution.slots import Alone, Block, Ranks, TreeSum, slots_of
from ggmlgraph.execution.turns import Turns
from ggmlgraph.tracing.tracer import Graph

DEFAULT_OPTIMIZER = optimizers.AdamW()
NO_FACTORS: Mapping[str, float] = {}
CHUNK = 1 << 16  # weights that change places at a time
COMPARE_EVERY = 100  # steps, after which ranks see whether they still have the same weights


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step did."""

    loss: float  # before the update, nats per token
    grad_norm: float  # global L2 norm before clipping


class Runtime(Session):
    """One graph file at one batch and context.

    graph: a traced graph, or the path of graph.bin, in any dialect. threads: default every processor this process may
    use. batch, ctx: default the sizes at export. accumulate: micro-batches per step. slots: into how many equal parts
    they are divided, which `ranks` share; what a step does depends on the slots, not on the ranks (slots.py). fusions:
    names in FUSIONS of the patterns that become one op. matmul_precision: "float32", or "bf16": matrix products round
    their operands to bfloat16 and add in float32, as torch.set_float32_matmul_precision names it; the fused attention
    computes in float32 either way. limits: the largest graph to take from the file. mapped: weights lie in the file
    instead of in memory of their own, so nothing may change it meanwhile; what is written into them stays here. seed:
    of what dropout drops in training.

    optimizer: what `step` updates parameters with. lr_of, decay_of: factors of the learning rate and of the weight
    decay by patterns (* ? []) of names, of which the first that matches counts; without one, the groups of the file.
    What has one axis, gains and biases, decays only where decay_of says so. ema: of an exponential average of the
    weights, how much stays in a step, such as 0.999; `loss` and `forward` run at the average, and `save` saves it.

    Any thread may call; one call goes on at a time, others wait for it, also those of a runtime made by `at`. While one
    runs, other Python threads go on. A forked process goes on with a copy. Arrays that look into the graph's memory
    last as long as somebody has them, also beyond `close`.

    Raises FormatError (a bad file; with the byte offset), UnsupportedError, LimitError, MemoryLimitError (a program
    does not fit `memory_limit` in bytes, default what the machine has free, even where activations are computed again).
    """

    def __init__(
        self,
        graph: Graph | str | os.PathLike[str],
        *,
        threads: int | None = None,
        batch: int | None = None,
        ctx: int | None = None,
        accumulate: int = 1,
        slots: int = 1,
        ranks: Ranks | None = None,
        memory_limit: int | None = None,
        dialect: str = "auto",
        fusions: Collection[str] = frozenset(passes.FUSIONS),
        limits: Limits = limits.DEFAULT,
        matmul_precision: str = "float32",
        roles: Roles | None = None,
        mapped: bool = False,
        seed: int = 0,
        optimizer: Optimizer = DEFAULT_OPTIMIZER,
        lr_of: Mapping[str, float] = NO_FACTORS,
        decay_of: Mapping[str, float] = NO_FACTORS,
        ema: float = 0.0,
    ) -> None:
        if not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise UsageError(f"seed {seed!r} is not in 0 .. 2**64 - 1")
        self.seed, self.optimizer, self.lr_of, self.decay_of, self.ema = seed, optimizer, lr_of, decay_of, ema
        matmul_precision_number(matmul_precision)
        settings = Settings(machine.isa(), matmul_precision, passes.fusion_mask(fusions))
        threads = machine.n_threads() if threads is None else machine.check_threads(threads)
        with file_of(graph) as path:
            model = open_graph(path, dialect, limits, roles, mapped=mapped).at(batch, ctx)
        self.slots, self.ranks = slots, ranks or Alone()
        self._begin(model, settings, threads, memory_limit, accumulate, Pools(), Turns())

    def _begin(
        self,
        model: NamedGraph,
        settings: Settings,
        threads: int,
        memory_limit: int | None,
        accumulate: int,
        pools: Pools,
        turns: Turns,
    ) -> None:
        if not isinstance(accumulate, int) or accumulate < 1:
            raise UsageError(f"accumulate {accumulate} is not a whole number from 1 on")
        if not isinstance(self.slots, int) or self.slots < 1 or accumulate % self.slots:
            raise UsageError(f"slots {self.slots} do not divide the {accumulate} micro-batches of a step")
        if self.slots < self.ranks.size:
            raise UsageError(f"{self.ranks.size} ranks for {self.slots} slots: each needs at least one")
        self.settings, self.threads, self.memory_limit = settings, threads, memory_limit
        self.accumulate, self.pools = accumulate, pools
        self.n_steps = 0  # optimiser steps done
        self.before_update: Callable[[], object] | None = None  # waits for who still reads the weights
        self.updates = optimizers.updates(self.optimizer, model, self.lr_of, self.decay_of, ema=self.ema)
        self._at_average = False  # the weights are those of the average
        feeder, pool = Feeder(model), pools.of(threads)
        divides = not feeder.has_weights
        programs = Programs(
            model, settings, pool, memory_limit,
            updates=self.updates, parts=(accumulate, self.slots), divides_loss=divides,
        )  # fmt: skip
        super().__init__(model, feeder, programs, turns)

    def at(self, batch: int | None = None, ctx: int | None = None, accumulate: int = 1, slots: int = 1) -> Runtime:
        """The same weights at another batch or context, default as here; slots are shared with the same ranks."""
        other = object.__new__(Runtime)
        other.seed, other.optimizer, other.ema = self.seed, self.optimizer, self.ema
        other.lr_of, other.decay_of = self.lr_of, self.decay_of
        other.slots, other.ranks = slots, self.ranks if slots > 1 else Alone()
        model = self.model.at(batch, ctx)
        other._begin(model, self.settings, self.threads, self.memory_limit, accumulate, self.pools, self.turns)
        return other

    @property
    def level(self) -> str:
        """What it computes with, to print: the ISA level, and the precision of products if it is not float32."""
        precision = self.settings.matmul_precision
        products = "" if precision == "float32" else f", {precision} products"
        return (self.settings.isa or isa_levels()[0]) + products

    # ------------------------------------------------------------ training

    @in_turn
    def check(self, batch: Batch) -> None:
        """Raise UsageError or ShapeError if a step would not take a batch like this one."""
        arrays = self._feeder.by_name(batch, self.programs.train.graph)
        self._feeder.part(arrays, 0, self.accumulate)

    @in_turn
    def backward(self, batch: Batch) -> float:
        """Gradients of one batch, no update; returns the loss. `gradient` then reads them."""
        train = self.programs.train
        arrays = self._feeder.by_name(batch, train.graph)
        losses = [self._slot(arrays, slot) for slot in slots_of(self.ranks.rank, self.ranks.size, self.slots)]
        self._last = train
        if self.slots == 1:
            return losses[0]
        train.set_gradients(self.ranks.total(self._sums, self.slots))
        self._sums.clear()
        return math.fsum(self.ranks.gathered(losses))

    def _slot(self, arrays: Mapping[str, ArrayLike], slot: int) -> float:
        """Run the micro-batches of one slot; its share of the loss."""
        train, n, loss = self.programs.train, self.accumulate // self.slots, 0.0
        for k in range(slot * n, (slot + 1) * n):
            if train.keep >= 0:
                train.leaf(train.keep)[...] = float(k > slot * n)
            train.drop(self.seed, self.n_steps, k)
            self._feeder.feed(self._feeder.part(arrays, k, self.accumulate), None, self.accumulate)
            train.run(0, train.n_gradient)
            loss += float(train.array(train.share).item())
        if self.slots > 1:
            self._sums.add(Block(0, slot), train.gradients(self._sums.buffer()))
        return loss

    @property
    def sums_nbytes(self) -> int:
        """Bytes that a step takes to add up its slots, beyond its program's own memory."""
        mine = len(slots_of(self.ranks.rank, self.ranks.size, self.slots))
        n_buffers = mine.bit_length() + (self.ranks.size > 1) if self.slots > 1 else 0
        return 4 * n_buffers * self.programs.train.n_values

    @cached_property
    def _sums(self) -> TreeSum:
        return TreeSum(self.programs.train.n_values)

    @in_turn
    def step(
        self,
        batch: Batch,
        *,
        lr: float,
        weight_decay: float = 0.1,
        clip: float = 1.0,
        clip_value: float = 0.0,
    ) -> StepResult:
        """One update by the optimiser on tokens, targets int32 (batch * accumulate, ctx); or on inputs by name, each
        with `accumulate` times the graph's first axis.

        clip: largest global gradient norm, 0 for none. clip_value: largest size of a number of the gradient after that,
        0 for none. A gradient norm that is not finite changes nothing. Raises UsageError for a rate that is not finite,
        and the like.
        """
        _check_rates(lr=lr, weight_decay=weight_decay, clip=clip, clip_value=clip_value)
        if self.ranks.size > 1:
            self._lead(batch, lr=lr, weight_decay=weight_decay, clip=clip, clip_value=clip_value)
        loss = self.backward(batch)
        train = self.programs.train
        own = self.optimizer.hyper(self.n_steps + 1) | {"ema": (self.ema, self.n_steps == 0)}
        for op, leaf in train.hypers.items():
            numbers = (lr, weight_decay, clip, clip_value, *own[op])
            train.leaf(leaf)[: len(numbers)] = numbers
        if self.before_update:
            self.before_update()
        train.run(train.n_gradient)
        grad_norm = float(np.sqrt(train.array(train.sum_sqr).item()))
        self.n_steps += math.isfinite(grad_norm)
        return StepResult(loss, grad_norm)

    def _lead(self, batch: Batch, **rates: Any) -> None:
        """Have the other ranks take part in a step, and now and then compare their weights before it."""
        if self.n_steps % COMPARE_EVERY == 0:
            self.ranks.lead("check", {"weights": self.digest()}, {})
        arrays = self._feeder.by_name(batch, self.programs.train.graph)
        self.ranks.lead("step", rates, {name: np.asarray(array) for name, array in arrays.items()})

    def share(self) -> None:
        """Give the other ranks this one's weights and optimiser state, if it is rank 0; else take that one's."""
        if self.ranks.size > 1:
            self.ranks.lead("state", {"n_steps": self.n_steps}, {})
            self.ranks.share(array for arrays in checkpoint.arrays(self).values() for array in arrays.values())

    def digest(self) -> str:
        """SHA-256 of the trained weights."""
        digest = hashlib.sha256()
        for array in self.weights().values():
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @in_turn
    def gradient(self, name: str) -> NDArray[np.float32]:
        """d loss / d parameter, as the last `step` or `backward` computed it, if no other run came after it."""
        train = self.programs.made
        if name not in self.params:
            raise GGError(f"{name!r} is not a trained parameter")
        found = passes.gradient_of(train.graph, train.params[name]) if train else -1
        if train is None or not train.has_values(found):
            raise GGError(f"there is no gradient of {name!r}: the last run computed none")
        return train.array(found).reshape(self.model.leaf(name).shape).copy()

    # ------------------------------------------------------------ state

    def weights(self) -> dict[str, NDArray[Any]]:
        """Views of the weights by parameter name."""
        return {name: self.model.leaf(name) for name in self.params}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, weights are the averages, where the optimiser keeps some; `loss` and `forward` do so themselves."""
        with self.turns:
            train = self.programs.made
            averages = train.averages if train and self.n_steps and not self._at_average else {}
            if self.before_update and averages:
                self.before_update()
            self._exchange(averages)
            self._at_average |= bool(averages)
            try:
                yield
            finally:
                self._exchange(averages)
                self._at_average &= not averages

    def _exchange(self, averages: Mapping[str, NDArray[Any]]) -> None:
        for name, average in averages.items():
            weights = self.model.leaf(name).reshape(-1)
            for k in range(0, len(weights), CHUNK):
                part = slice(k, k + CHUNK)
                average[part], weights[part] = weights[part].copy(), average[part].copy()

    @in_turn
    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Views of the weights by parameter name, and of what the optimiser keeps, as "m.NAME" and the like. Where
        it averages weights, the averages are the weights, and what training goes on with is kept, as "trained.NAME"."""
        return self.state_at(self.n_steps)

    def state_at(self, n_steps: int) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Where weights and state lie after so many steps."""
        weights, train, kept = self.weights(), self.programs.train, {}
        for name, leafs in train.states.items():
            for letter, tensor_id in leafs.items():
                values = train.leaf(tensor_id)
                shape = weights[name].shape if values.size == weights[name].size else values.shape
                kept[f"{letter}.{name}"] = values.reshape(shape)
        for name in train.averages if n_steps and not self._at_average else ():
            kept[f"trained.{name}"], weights[name] = weights[name], kept.pop(f"average.{name}")
        return weights, kept

    @in_turn
    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write weights, optimiser state and step count to a new directory, at once or not at all."""
        checkpoint.save(self, Path(directory), {})

    @in_turn
    def load(self, directory: str | os.PathLike[str]) -> None:
        """Read what `save` wrote. Raises CheckpointError if it is damaged or of another graph."""
        checkpoint.load(self, Path(directory))


@contextmanager
def file_of(graph: Graph | str | os.PathLike[str]) -> Iterator[str | os.PathLike[str]]:
    """The path of a graph's file; one that was traced goes through a file too, so that there is one way to run it."""
    if not isinstance(graph, Graph):
        yield graph
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.bin"
        graph.save(path)
        yield path


def _check_rates(**rates: float) -> None:
    for name, value in rates.items():
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{name} {value} is not a number from 0 on")
