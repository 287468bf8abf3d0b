"""Training data from Python: batches that a program makes, one for each step.

text.py and arrays.py are the same for texts and arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.data import order
from ggmlgraph.errors import DataError
from ggmlgraph.execution.runtime import Runtime

Arrays = Mapping[str, Any]  # by name of the graph's input


class BatchData:
    """`batches(step)` gives the inputs by name of step 0, 1, ..., or `batches` is iterated over, a step an element.

    A resumed run goes on where it was: a function is asked for the steps that are left, of an iterable those done are
    passed over. So both must give the same when they are begun anew; the first batch is kept with a run, to see it.
    validation: batches whose mean loss is the validation loss; none: there is no such loss.
    """

    def __init__(
        self, batches: Callable[[int], Arrays] | Iterable[Arrays], *, validation: Sequence[Arrays] = ()
    ) -> None:
        self._batches, self._validation = batches, validation
        self._iterator: Iterator[Arrays] | None = None
        self._next = 0  # the step of the element that the iterator gives next
        self.first = self._arrays(0)
        self.digest, self.order = _digest(self.first), order.VERSION
        self.bits_per_nat: float | None = None  # samples are no text

    def batch(self, step: int, n: int) -> dict[str, NDArray[Any]]:
        """The inputs of a step; how many samples there are is up to who makes them, and the runtime checks it.

        Raises DataError where there are no more batches, or something is none.
        """
        return self.first if step == 0 else self._arrays(step)

    def samples(self, first: int, n: int) -> dict[str, NDArray[Any]]:
        """The batch that begins with sample `first`, where all batches have n samples."""
        return self.batch(first // n, n)

    def _arrays(self, step: int) -> dict[str, NDArray[Any]]:
        given = self._batches(step) if callable(self._batches) else self._element(self._batches, step)
        if not isinstance(given, Mapping):
            raise DataError(f"the batch of step {step} is a {type(given).__name__}, not a dict of arrays by input")
        return {str(name): np.array(array) for name, array in given.items()}  # copies: a buffer may be filled anew

    def _element(self, batches: Iterable[Arrays], step: int) -> Arrays:
        if self._iterator is None or step < self._next:
            again = iter(batches)
            if again is self._iterator:
                raise DataError(f"the batches are past step {step} and cannot be iterated over again")
            self._iterator, self._next = again, 0
        for element in self._iterator:
            self._next += 1
            if self._next > step:
                return element
        raise DataError(f"the batches end before step {step}: there are {self._next}")

    def evaluate(self, runtime: Runtime) -> tuple[float, None]:
        """Mean loss of the validation batches; not a number where there are none."""
        losses = [runtime.loss_of(batch) for batch in self._validation]
        return float(np.mean(losses)) if losses else float("nan"), None


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = blake2b(digest_size=16)
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
