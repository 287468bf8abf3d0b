"""Training data from arrays, in numpy files or in memory: one per input of a graph, the first axis counts samples.

Which samples a step sees is a pure function of the seed and the step's number. text.py is the same for text, batches.py
for what a program makes step by step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggmlgraph.data import npz, order
from ggmlgraph.data.numbers import Numbers
from ggmlgraph.data.order import permute
from ggmlgraph.errors import DataError
from ggmlgraph.execution.roles import TARGETS, answers_of
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.files.regular import open_regular
from ggmlgraph.philox import philox

EVAL_SAMPLES = 1 << 13  # of the validation part, at most, each time it is evaluated
VALIDATION_SHARE = 10  # of the samples, one in so many, in whole batches
CHUNK = 1 << 20  # elements looked at together


@dataclass(frozen=True)
class _Input:
    source: str  # the file, else the input's name
    samples: NDArray[Any]  # (n, ...), read-only, mapped: to be looked through once
    numbers: Numbers | None  # the same, to draw from; None where they do not lie in order, and `samples` are in memory
    dtype: np.dtype[Any]  # of the graph's leaf
    shape: tuple[int, ...]  # of one sample, in the leaf

    def rows(self, chosen: NDArray[np.int64]) -> NDArray[Any]:
        """Some samples. Raises DataError if the file is no longer as long as it was."""
        if self.numbers is None:
            return self.samples[chosen]
        n = self.samples[0].size
        return self.numbers.at(chosen * n, n).reshape(len(chosen), *self.samples.shape[1:])


class ArrayData:
    """Files, or arrays, by name of the graph's input; `rows` samples are a batch of the graph.

    Samples are for training but for the last tenth, at least one batch, which is for validation.
    A .npz file gives the array of the input's name; its arrays are held in memory.
    Raises DataError for a file that is not a .npy or .npz of numbers, or what does not fit its input.
    """

    def __init__(self, arrays: Mapping[str, Path | ArrayLike], runtime: Runtime, seed: int) -> None:
        self.seed, self.answers = seed, answers_of(runtime.graph)
        self._inputs = {name: _open(given, name, runtime.input(name)) for name, given in arrays.items()}
        self.rows = self._rows(runtime)
        n = self._n_samples()
        self.n_val = max(self.rows, n // VALIDATION_SHARE // self.rows * self.rows)
        self.n_train = n - self.n_val
        if self.n_train < self.rows:
            raise DataError(f"{self.name} has {n} samples; training and validation need two batches of {self.rows}")
        if self.answers is not None:
            self._check_targets(runtime.graph.shape(runtime.graph.find(self.answers), 4)[-1])
        self.digest, self.order = self._digest(), order.VERSION
        self.bits_per_nat: float | None = None  # samples are no text

    @property
    def name(self) -> str:
        """What errors and summaries call the data."""
        return ", ".join(each.source for each in self._inputs.values())

    def _rows(self, runtime: Runtime) -> int:
        """Samples of a batch: the inputs' first axes, or one where a sample fills the whole input."""
        rows = {name: runtime.input(name).size // int(np.prod(each.shape)) for name, each in self._inputs.items()}
        if len(set(rows.values())) != 1:
            found = ", ".join(f"{name} {n}" for name, n in rows.items())
            raise DataError(f"a run of the graph takes as many samples of every input, but by these samples: {found}")
        return next(iter(rows.values()))

    def _n_samples(self) -> int:
        counts = {len(each.samples) for each in self._inputs.values()}
        if len(counts) != 1:
            found = ", ".join(f"{each.source} {len(each.samples)}" for each in self._inputs.values())
            raise DataError(f"as many samples are needed of every input, but: {found}")
        return counts.pop()

    def _check_targets(self, n_classes: int) -> None:
        each = self._inputs[TARGETS]
        flat = each.samples.reshape(-1)
        for begin in range(0, flat.size, CHUNK):
            part = flat[begin : begin + CHUNK]
            bad = (part < 0) | (part >= n_classes)
            if bad.any():
                at = int(bad.argmax())
                raise DataError(f"{each.source}: target {part[at]} (number {begin + at}) is not in 0..{n_classes - 1}")

    def _digest(self) -> str:
        digest = blake2b(digest_size=16)
        for name, each in sorted(self._inputs.items()):
            digest.update(f"{name} {each.samples.dtype} {each.samples.shape}\n".encode())
            step = max(1, CHUNK * len(each.samples) // max(1, each.samples.size))
            for begin in range(0, len(each.samples), step):
                digest.update(np.ascontiguousarray(each.samples[begin : begin + step]).tobytes())
        return digest.hexdigest()

    # ------------------------------------------------------------ batches

    def batch(self, step: int, n: int) -> dict[str, NDArray[Any]]:
        """Batch number `step` (from 0) of batches of n, as `samples`."""
        return self.samples(step * n, n)

    def samples(self, first: int, n: int) -> dict[str, NDArray[Any]]:
        """The n samples of the run from number `first` on, every input by name. Every epoch has its own order."""
        epochs, places = np.divmod(np.arange(first, first + n), self.n_train)
        chosen = np.empty(n, np.int64)
        for epoch in np.unique(epochs):
            bits = philox(self.seed, f"samples epoch {epoch}")
            chosen[epochs == epoch] = permute(places[epochs == epoch], self.n_train, bits, self.order)
        return self._take(chosen)

    def validation_batches(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Whole batches of the validation part, in order, EVAL_SAMPLES at most but at least one."""
        for first in range(0, min(self.n_val, max(self.rows, EVAL_SAMPLES // self.rows * self.rows)), self.rows):
            yield self._take(self.n_train + np.arange(first, first + self.rows))

    def _take(self, chosen: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        return {name: _convert(each, chosen) for name, each in self._inputs.items()}

    def evaluate(self, runtime: Runtime) -> tuple[float, float | None]:
        """Mean loss of the validation part and, with targets, the share of logits whose largest is the target."""
        losses, n_right, n_answers = [], 0, 0
        for batch in self.validation_batches():
            losses.append(runtime.loss_of(batch))
            if self.answers is not None:
                logits = runtime.get(self.answers)
                right = logits.reshape(-1, logits.shape[-1]).argmax(-1) == batch[TARGETS].reshape(-1)
                n_right, n_answers = n_right + int(right.sum()), n_answers + right.size
        return float(np.mean(losses)), n_right / n_answers if n_answers else None


def _convert(each: _Input, chosen: NDArray[np.int64]) -> NDArray[Any]:
    values = each.rows(chosen)
    if each.dtype == np.int32 and values.size and not -(1 << 31) <= values.min() <= values.max() < 1 << 31:
        raise DataError(f"{each.source}: {values.min()} or {values.max()} does not fit int32")
    return np.ascontiguousarray(values.reshape(-1, *each.shape), each.dtype)


def _map(path: Path) -> NDArray[Any]:
    open_regular(path)[0].close()
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError, OverflowError, TypeError) as error:
        raise DataError(f"{path}: not a .npy file of numbers: {' '.join(str(error).split())[:120]}") from None


def _read(path: Path, name: str) -> NDArray[Any]:
    """Map a file. It is not trusted: nothing in it is executed."""
    return npz.read(path, name) if path.suffix == ".npz" else _map(path)


def _array(given: ArrayLike, name: str) -> NDArray[Any]:
    try:
        return np.asarray(given)
    except ValueError as error:
        raise DataError(f"{name}: not an array: {error}") from None


def _open(given: Path | ArrayLike, name: str, leaf: NDArray[Any]) -> _Input:
    """See that samples fit the leaf."""
    samples = _read(given, name) if isinstance(given, Path) else _array(given, name)
    source = str(given) if isinstance(given, Path) else name
    kinds = "bui" if leaf.dtype.kind == "i" else "buif"
    if samples.dtype.kind not in kinds:
        raise DataError(f"{source} holds {samples.dtype}, the input {name} takes {leaf.dtype}")
    if samples.ndim == 0 or samples.size == 0:
        raise DataError(f"{source} holds no samples: its shape is {list(samples.shape)}")
    sample = samples.shape[1:]
    while sample and sample[0] == 1 and sample not in (leaf.shape, leaf.shape[1:]):
        sample = sample[1:]
    if sample not in (leaf.shape, leaf.shape[1:]):
        wanted = ", ".join(map(str, leaf.shape[1:]))
        raise DataError(
            f"{source}: samples of shape {list(samples.shape[1:])} for the input {name}, which takes [{wanted}]"
        )
    if isinstance(given, Path) and isinstance(samples, np.memmap) and samples.flags.c_contiguous:
        return _Input(source, samples, Numbers(given, samples.offset, samples.dtype), leaf.dtype, sample)
    return _Input(source, np.ascontiguousarray(samples), None, leaf.dtype, sample)
