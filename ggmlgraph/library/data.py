"""What a run is trained on, out of what a program or a command gives: texts, arrays, or batches. Used by `Trainer`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from numpy.typing import ArrayLike

from ggmlgraph.data.arrays import ArrayData
from ggmlgraph.data.batches import Arrays, BatchData
from ggmlgraph.errors import UsageError
from ggmlgraph.execution.roles import TARGETS
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.training.config import GIVEN, TrainConfig
from ggmlgraph.training.run import files_of

Name = str | os.PathLike[str]  # of a file
Data = Name | Sequence[Name] | Mapping[str, Any] | Callable[[int], Arrays] | Iterable[Arrays] | None  # see `Trainer`


@dataclass(frozen=True)
class Given:
    """What was given, told apart."""

    options: dict[str, Any]  # how the run's options name it
    arrays: dict[str, Path | ArrayLike]  # by input
    batches: BatchData | None


def told_apart(data: Data, targets: Name | ArrayLike | None, validation: Sequence[Arrays]) -> Given:
    """Raises UsageError for what is none of what `Trainer` takes."""
    options: dict[str, Any] = {}
    arrays: dict[str, Path | ArrayLike] = {}
    batches = None
    if isinstance(data, str | os.PathLike):
        options["data"] = (os.fspath(data),)
    elif isinstance(data, list | tuple) and all(isinstance(each, str | os.PathLike) for each in data):
        options["data"] = tuple(map(os.fspath, data))
    elif isinstance(data, Mapping):
        arrays = {name: _opened(each) for name, each in data.items()}
        options["input"] = tuple(f"{name}={_named(each)}" for name, each in arrays.items())
    elif callable(data) or isinstance(data, Iterable):
        batches = BatchData(cast(Callable[[int], Arrays] | Iterable[Arrays], data), validation=validation)
        options["input"] = tuple(f"{name}={GIVEN}" for name in batches.first)
    elif data is not None:
        raise UsageError(
            f"data is of type {type(data).__name__}: give names of texts, a dict of arrays by input, or batches"
        )
    if targets is not None:
        arrays[TARGETS] = _opened(targets)
        options["targets"] = _named(arrays[TARGETS])
    if validation and batches is None:
        raise UsageError("validation is for batches; of texts and arrays the last part is kept for it")
    return Given(options, arrays, batches)


def _opened(given: Name | ArrayLike) -> Path | ArrayLike:
    return Path(given) if isinstance(given, str | os.PathLike) else given


def _named(given: Path | ArrayLike) -> str:
    return str(given) if isinstance(given, Path) else GIVEN


def array_data(given: Given, runtime: Runtime, config: TrainConfig) -> ArrayData:
    """What was given, and the files that the options name beside it. Raises UsageError, DataError."""
    arrays = files_of(config) | given.arrays
    lost = [name for name, each in arrays.items() if isinstance(each, Path) and str(each) == GIVEN]
    if lost:
        raise UsageError(
            f"{', '.join(lost)} came from a Python program: go on there, by gg.Trainer with data= and resume='auto'"
        )
    return ArrayData(arrays, runtime, config.seed)


def sizes_of(batches: BatchData, runtime: Runtime, accumulate: int) -> dict[str, int]:
    """The graph's named sizes at which it takes such batches."""
    sizes: dict[str, int] = {}
    for name, array in batches.first.items():
        axes = runtime.metadata.axes_of(name)
        for axis, size in enumerate(axes if len(axes) == array.ndim else ()):
            if size in runtime.sizes:
                sizes[size] = array.shape[axis] // (1 if axis else accumulate)
    return sizes
