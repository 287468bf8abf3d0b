"""What goes into the inputs of a graph before a run: batches by role or by name, positions, weights of the loss.

Used by `Runtime` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.errors import ShapeError, UsageError
from ggmlgraph.execution.namedgraph import NamedGraph

Batch = tuple[ArrayLike, ArrayLike] | Mapping[str, ArrayLike]  # tokens and targets, or every input by name
FILLED = ("positions", "positions_f32", "loss_weights")  # kinds of inputs that follow from the sizes


class Feeder:
    """Fills the inputs of one graph."""

    def __init__(self, model: NamedGraph) -> None:
        self._model = model
        self._kinds = model.metadata.inputs
        self._lasting: set[str] = set()  # inputs that somebody set to stay
        self.has_weights = "loss_weights" in self._kinds.values()

    def set(self, name: str, array: ArrayLike) -> None:
        """Set a leaf to values that stay until they are set anew."""
        self._model.set(name, array)
        self._lasting.add(name)

    def by_name(self, batch: Batch, used: CoreGraph) -> Mapping[str, ArrayLike]:
        """The inputs of a batch. Raises UsageError if one that a graph uses has no values: the last batch's do not
        count."""
        named = batch if isinstance(batch, Mapping) else self.by_role(*batch)
        for name in self._model.inputs:
            if (
                used.find(name) >= 0
                and name not in named
                and name not in self._lasting
                and self._kinds.get(name) not in FILLED
            ):
                raise UsageError(f"the batch has nothing for the input {name!r}")
        return named

    def by_role(self, tokens: ArrayLike | None, targets: ArrayLike | None) -> dict[str, ArrayLike]:
        """Tokens and targets by the names of their inputs."""
        roles = {"tokens": tokens, "targets": targets}
        return {name: array for name, kind in self._kinds.items() if (array := roles.get(kind)) is not None}

    def feed(self, arrays: Mapping[str, ArrayLike], weight: ArrayLike | None = None, n_parts: int = 1) -> None:
        """Fill inputs by name; positions and loss_weights too, the latter with `weight`, default 1/n for n rows in all
        of n_parts micro-batches."""
        for name, kind in self._kinds.items():
            if kind in ("positions", "positions_f32"):
                leaf = self._model.leaf(name)
                leaf[...] = np.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape)
            elif kind == "loss_weights":
                leaf = self._model.leaf(name)
                leaf[...] = 1.0 / (leaf.size * n_parts) if weight is None else weight
        for name, array in arrays.items():
            self._model.set(name, array)

    def part(self, arrays: Mapping[str, ArrayLike], k: int, n: int) -> dict[str, NDArray[Any]]:
        """What the inputs get of a batch in micro-batch k: the k-th of n equal parts along the first axis."""
        return {name: self._part(name, np.asarray(array), k, n) for name, array in arrays.items()}

    def _part(self, name: str, values: NDArray[Any], k: int, n: int) -> NDArray[Any]:
        shape = self._model.leaf(name).shape
        if values.shape not in ((n * shape[0], *shape[1:]), (n, *shape)):
            raise ShapeError(f"{name}: a step takes {n} x {list(shape)}, got {list(values.shape)}")
        part: NDArray[Any] = values.reshape(n, *shape)[k]
        return part
