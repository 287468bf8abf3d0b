"""How large weights, gradients and updates of each layer are, told from some of their elements.

A step in which nothing is looked at and one in which all is have the same results: what is here only reads. Elements at
equal distances stand for all of a tensor, so the time does not grow with it. Used by the trainer every few steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.core import passes
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.training.metrics import Sizes

SAMPLED = 4096  # elements of a tensor: their mean square is that of all to about 2 %
MOST = 200  # layers that are told of
_NUMBERED = re.compile(r"[^.]*\.\d+(?=\.|$)|[^.]*")


def layer_of(name: str) -> str:
    """The layer that a parameter is of: "blk.3" of "blk.3.attn_q", else what its name begins with."""
    found = _NUMBERED.match(name)
    return found[0] if found else name


class Layers:
    """The layers of one model, by what their parameters' names begin with."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._members: dict[str, list[str]] = {}
        for name in runtime.params:
            self._members.setdefault(layer_of(name), []).append(name)

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Of each parameter the elements that stand for it, copied."""
        weights = self._runtime.weights()
        return {name: _sampled(weights[name]).copy() for name in self._runtime.params}

    def sizes(self, before: Mapping[str, NDArray[np.float32]]) -> dict[str, Sizes]:
        """Of each layer, after a step: root mean squares of weights, and of gradients before clipping, and that of what
        the step changed by that of the weights. before: `weights` as the step began."""
        weights = self._runtime.weights()
        found: dict[str, Sizes] = {}
        for layer, names in list(self._members.items())[:MOST]:
            counts = [weights[name].size for name in names]
            size = _size((before[name] for name in names), counts)
            moved = _size((_sampled(weights[name]) - before[name] for name in names), counts)
            gradient = _size((self._gradient(name) for name in names), counts)
            share = moved / size if moved is not None and size else None
            found[layer] = (_short(size), _short(gradient), _short(share))
        return found

    def _gradient(self, name: str) -> NDArray[np.float32] | None:
        train = self._runtime.programs.made
        at = passes.gradient_of(train.graph, train.params[name]) if train else -1
        return _sampled(train.array(at)) if train and at >= 0 and train.has_values(at) else None


def _sampled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """At most SAMPLED elements, as far apart as can be, at an odd distance, which falls on no single column."""
    return values.reshape(-1)[:: -(-values.size // SAMPLED) | 1]


def _size(samples: Iterable[NDArray[np.float32] | None], counts: list[int]) -> float | None:
    """Root mean square of tensors of so many elements; None where one is missing or not finite."""
    total = 0.0
    for sample, n in zip(samples, counts, strict=True):
        if sample is None:
            return None
        total += float(np.square(sample, dtype=np.float64).mean()) * n if n else 0.0
    size = math.sqrt(total / max(1, sum(counts)))
    return size if math.isfinite(size) else None


def _short(value: float | None) -> float | None:
    """To four digits: more are not known."""
    return None if value is None else float(f"{value:.4g}")
