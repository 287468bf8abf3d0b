"""A session with one graph: what goes in, what is computed, what may be read then; one call at a time.

Names, sizes and memory are `NamedGraph`'s, inputs `Feeder`'s, programs `Programs`'. `Runtime` adds how a file becomes
one, and training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from html import escape
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from numpy.typing import ArrayLike, NDArray

from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.program import Program
from ggmlgraph.errors import GGError, UsageError, escaped
from ggmlgraph.execution.feeder import Feeder
from ggmlgraph.execution.namedgraph import NamedGraph
from ggmlgraph.execution.programs import Programs
from ggmlgraph.execution.turns import Turns
from ggmlgraph.graphfile.metadata import Metadata
from ggmlgraph.table.dialect import OUTPUT

S = TypeVar("S", bound="Session")
P = ParamSpec("P")
R = TypeVar("R")


def in_turn(
    method: Callable[Concatenate[S, P], R],
) -> Callable[Concatenate[S, P], R]:
    """A method of which one call at a time goes on, on this session and those that share its memory; others wait."""

    @wraps(method)
    def wait(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.turns:
            if self.closed:
                raise UsageError("the runtime is closed")
            return method(self, *args, **kwargs)

    return wait


class Session:
    """Inputs, results and weights of one graph by name."""

    def __init__(self, model: NamedGraph, feeder: Feeder, programs: Programs, turns: Turns) -> None:
        self.model, self._feeder, self.programs, self.turns = model, feeder, programs, turns
        self.closed = False
        self._last: Program | None = None  # what ran last

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the programs' memory, and their threads if nobody else uses them. No call is taken any more."""
        with self.turns:
            self.closed = True
            self._last = None
            self.programs.clear()

    # ------------------------------------------------------------ what it is

    def summary(self) -> str:
        """ "llama: 2,134,080 parameters, batch 16, ctx 64, inputs tokens, targets, outputs logits, loss"."""
        model = self.model
        sizes = [f"{name} {value}" for name, value in model.sizes.items()]
        outputs = ", ".join(model.graph.name(i) for i in model.graph.flagged(OUTPUT))
        parts = [f"{model.n_params:,} parameters", *sizes, f"inputs {', '.join(model.inputs)}", f"outputs {outputs}"]
        return escaped(f"{model.metadata.model or 'unnamed'}: {', '.join(parts)}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.summary()}{', closed' if self.closed else ''}>"

    def _repr_html_(self) -> str:
        """For notebooks: the sizes; the memory of what has been made to run; the parameters with their sizes."""
        sizes = [(name, str(value), "") for name, value in self.model.sizes.items()]
        memory = [(f"memory, {what}", f"{nbytes / 2**20:,.2f} MiB", "") for what, nbytes in self.programs.memory()]
        shapes = {name: self.graph.shape(self.graph.find(name)) for name in self.model.params}
        params = [(name, str(list(shape)), f"{math.prod(shape):,}") for name, shape in shapes.items()]
        rows = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in (*sizes, *memory, *params)
        )
        return f"<details><summary><code>{escape(repr(self))}</code></summary><table>{rows}</table></details>"

    @property
    def graph(self) -> CoreGraph:
        return self.model.graph

    @property
    def metadata(self) -> Metadata:
        return self.model.metadata

    @property
    def sizes(self) -> dict[str, int]:
        """Named sizes: batch, ctx."""
        return self.model.sizes

    @property
    def window(self) -> tuple[int, int]:
        """(batch, ctx) of the tokens one run takes. Raises UnsupportedError if the graph is no language model."""
        return self.model.window

    @property
    def n_vocab(self) -> int | None:
        """How many token ids the model has, if that can be seen of the graph."""
        return self.model.n_vocab

    @property
    def params(self) -> list[str]:
        """Names of the trained parameters, in the graph's order."""
        return self.model.params

    @property
    def n_params(self) -> int:
        """Number of trained values."""
        return self.model.n_params

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs."""
        return self.model.inputs

    @property
    def has_loss_weights(self) -> bool:
        """Whether the loss is a sum weighted by an input, so that rows can be left out of it."""
        return self._feeder.has_weights

    def tokenizer_bytes(self) -> bytes | None:
        """The tokenizer that travels in the file, for `tokenizer_from_bytes`."""
        return self.model.tokenizer_bytes()

    # ------------------------------------------------------------ reading and writing by name

    def input(self, name: str) -> NDArray[Any]:
        """The memory of an input or parameter, as it lies in the graph: shape and dtype are what `set` takes."""
        return self.model.leaf(name)

    @in_turn
    def set(self, name: str, array: ArrayLike) -> None:
        """Copy values into an input or weight, which keeps them. Raises ShapeError if shape or dtype do not fit,
        UsageError for a number that the dtype has not.

        A weight of a type that numpy has not (bf16, q8_0, ...) takes its bytes, uint8, whole rows of them.
        """
        self._feeder.set(name, array)

    @in_turn
    def get(self, name: str) -> NDArray[Any]:
        """A copy of a tensor's values: of a weight or input, or of an output of the last `forward` or `step`.

        Where numpy has not the type, float32. Raises GGError for a tensor whose values the last run has not kept.
        """
        if self.graph.is_leaf(self.model.find(name)):
            return self.model.values(name)
        program = self._last
        found = program.graph.find(name) if program else -1
        if program is None or found < 0 or not program.has_values(found):
            raise GGError(f"{name!r} was not kept by the last run; ask for it with forward({name!r})")
        return program.array(found, self.model.rank(name)).copy()

    @in_turn
    def feed(self, tokens: ArrayLike, targets: ArrayLike | None = None, weight: ArrayLike | None = None) -> None:
        """Fill the inputs of a language model: tokens, targets int32 (batch, ctx); loss_weights `weight`, float32
        (batch, ctx) or one for all, default 1/n_tokens."""
        self._feeder.feed(self._feeder.by_role(tokens, targets), weight)

    # ------------------------------------------------------------ running

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, weights are what they are to be when they are used; see Runtime."""
        return nullcontext()

    @in_turn
    def forward(
        self, /, *outputs: str, tokens: ArrayLike | None = None, targets: ArrayLike | None = None, **inputs: ArrayLike
    ) -> list[Any]:
        """Run up to `outputs` (default: the loss) and return copies of them. Inputs as set, or from the arguments:
        tokens and targets, others by name."""
        outputs = outputs or (self.model.loss,)
        if unknown := next((name for name in inputs if name not in self.inputs), None):
            raise UsageError(f"the graph has no input {unknown!r}; its inputs are {', '.join(self.inputs)}")
        if tokens is not None or inputs:
            self._feeder.feed({**self._feeder.by_role(tokens, targets), **inputs})
        program = self.programs.forward(*outputs)
        with self.averaged():
            program.run()
        self._last = program
        return [self.get(name) for name in outputs]

    @in_turn
    def loss(self, tokens: ArrayLike, targets: ArrayLike, weight: ArrayLike | None = None) -> float:
        """Loss of one batch, without gradients; arguments as `feed` takes them.

        Where a training program exists, its forward half is run, so that evaluation needs no memory of its own.
        """
        self.feed(tokens, targets, weight)
        return self._run_loss()

    @in_turn
    def loss_of(self, arrays: Mapping[str, ArrayLike]) -> float:
        """Loss of inputs by name, without gradients."""
        program = self.programs.made or self.programs.forward(self.model.loss)
        self._feeder.feed(self._feeder.by_name(arrays, program.graph))
        return self._run_loss()

    def _run_loss(self) -> float:
        train = self.programs.made
        if train is None:
            return float(self.forward()[0].item())
        train.drop_nothing()
        with self.averaged():
            train.run(0, train.loss + 1)
        self._last = train
        return float(train.array(train.loss).item())
