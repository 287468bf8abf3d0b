"""The programs of a graph: made when first asked for, kept while there is memory, all on the same threads.

Used by `Runtime` and, through it, by decoding and by whoever looks into a graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping

from ggmlgraph import machine
from ggmlgraph.core import passes
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.program import Pool, Program
from ggmlgraph.errors import MemoryLimitError
from ggmlgraph.execution.namedgraph import NamedGraph
from ggmlgraph.execution.optimizers import Update
from ggmlgraph.execution.program import Settings, TrainProgram, forward_of
from ggmlgraph.execution.roles import answers_of
from ggmlgraph.table.dialect import INPUT

MOST_KEPT = 16  # forward programs


class Pools:
    """A pool for each number of threads, started when it is first used."""

    def __init__(self) -> None:
        self._pools: dict[int, Pool] = {}

    def of(self, n_threads: int) -> Pool:
        if n_threads not in self._pools:
            self._pools[n_threads] = Pool(n_threads)
        return self._pools[n_threads]


class Programs:
    """Programs of one graph at one size. updates: of parameters, by name. parts: micro-batches of a step, in whose
    number a loss without weights of its own is divided, and slots, within which the graph adds them up."""

    def __init__(
        self,
        model: NamedGraph,
        settings: Settings,
        pool: Pool,
        memory_limit: int | None,
        *,
        updates: Mapping[str, Update],
        parts: tuple[int, int],
        divides_loss: bool,
    ) -> None:
        self._model, self._settings, self._pool, self._memory_limit = model, settings, pool, memory_limit
        self._updates = updates
        accumulate, slots = parts
        self._accumulate, self._divisor = accumulate // slots, accumulate if divides_loss else 1
        self._forward: OrderedDict[tuple[str, ...], Program] = OrderedDict()  # the latest used last
        self.made: TrainProgram | None = None  # the training program, once there is one

    def clear(self) -> None:
        """Let go of all programs."""
        self._forward.clear()
        self.made = None

    # ------------------------------------------------------------ forward

    def forward(self, *outputs: str) -> Program:
        """What computes these outputs."""
        if outputs not in self._forward:
            program = Program(self.fused(*outputs), self._pool, self._settings.isa, self._settings.matmul_precision)
            self.check(program)
            self._forward[outputs] = program
            if len(self._forward) > MOST_KEPT:
                self._forward.popitem(last=False)
        self._forward.move_to_end(outputs)
        return self._forward[outputs]

    def fused(self, *outputs: str) -> CoreGraph:
        """The forward graph of these outputs, with patterns of ops fused."""
        roots = [self._model.find(name) for name in outputs]
        return passes.fuse(self._model.graph, self._with_writes(roots), self._settings.fusions)

    def _with_writes(self, roots: list[int]) -> list[int]:
        """Roots of a run: what is asked for, and what writes into leafs, which every run does as ggml would."""
        graph = self._model.graph
        for name in self._model.leafs(INPUT):
            graph.leaf_bytes(graph.find(name))  # inputs exist before the programs do, so that all share one memory
        return list(dict.fromkeys([*roots, *graph.writes()]))

    # ------------------------------------------------------------ training

    @property
    def train(self) -> TrainProgram:
        """Forward, backward, optimiser. It computes as little again as the memory allows."""
        if self.made is None:
            self.made = self._fitting()
        return self.made

    def train_at(self, recompute: int) -> TrainProgram:
        """The training program at one level of recomputation, 0 to its `max_recompute`."""
        loss, answers = self._model.find(self._model.loss), answers_of(self._model.graph)
        read = [] if answers is None else [self._model.find(answers)]  # when the loss is evaluated
        roots = self._with_writes(read)
        dropout = {self._model.find(name): rate for name, rate in self._model.metadata.dropout.items()}
        forward = forward_of(self._model.graph, loss, roots, self._settings, dropout=dropout, divisor=self._divisor)
        return TrainProgram(forward, self._updates, self._accumulate, self._pool, self._settings, recompute)

    def _fitting(self) -> TrainProgram:
        program = least = self.train_at(0)
        while not self._fits(program) and program.recompute < program.max_recompute:
            program = self.train_at(program.recompute + 1)
            least = min(least, program, key=lambda p: p.cost().nbytes)
        self.check(least if not self._fits(program) else program)
        return program

    # ------------------------------------------------------------ memory

    def memory(self) -> Iterator[tuple[str, int]]:
        """Bytes of the weights, inputs and optimiser state, and of each program that has been made, besides."""
        made: list[tuple[str, Program]] = [] if self.made is None else [("training", self.made)]
        made += [(", ".join(outputs), program) for outputs, program in self._forward.items()]
        yield "weights and inputs", self._model.graph.held_nbytes()
        for what, program in made:
            yield what, program.cost().own_nbytes

    def check(self, program: Program) -> None:
        """Raises MemoryLimitError if a program does not fit, not even where those unused longest make room."""
        if self._fits(program):
            return
        needs, there = self._needs_and_has(program)
        sizes = " and ".join(f"{name} {value}" for name, value in self._model.sizes.items())
        raise MemoryLimitError(
            f"needs {needs / 2**20:.0f} MiB{f' at {sizes}' if sizes else ''}, {there / 2**20:.0f} MiB are available"
        )

    def _fits(self, program: Program) -> bool:
        while (balance := self._needs_and_has(program)) and balance[0] > balance[1]:
            if not self._forward:
                return False
            self._forward.popitem(last=False)
        return True

    def _needs_and_has(self, program: Program) -> tuple[float, float]:
        """Bytes of the leafs and of all programs, with this one, and the most that they may have.

        Without a limit that is what the machine has free and what they have taken of it already.
        """
        kept = [p for p in (*self._forward.values(), self.made) if p is not None and p is not program]
        costs = [p.cost() for p in (program, *kept)]
        needs = max(cost.leaf_nbytes for cost in costs) + sum(cost.own_nbytes for cost in costs)
        if self._memory_limit is not None:
            return needs, self._memory_limit
        free = machine.available_memory()
        if free is None:
            return needs, float("inf")
        held = max(p.graph.held_nbytes() for p in (program, *kept))
        return needs, free + held + sum(p.cost().own_nbytes for p in kept if p.has_run)
