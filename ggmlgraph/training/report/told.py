"""What a run directory says of a run beside its numbers: options, events, samples, what made it.

Used by `page`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ggmlgraph.errors import UsageError
from ggmlgraph.execution.optimizers import spelled
from ggmlgraph.training import events, rundir
from ggmlgraph.training.config import TrainConfig
from ggmlgraph.training.events import Event
from ggmlgraph.training.report.history import Column, History, read

MARKED = ("resume", "skip", "spike", "rollback", "phase", "checkpoint")  # kinds of events that curves are marked with
BEGINS = ("start", "resume")
CLIPPED_OF = 25  # steps over which the share of clipped ones is told


@dataclass(frozen=True)
class Told:
    """A run as the report knows it."""

    name: str
    history: History
    config: TrainConfig | None
    events: tuple[Event, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """Of the latest sitting."""
        return next((event.facts for event in reversed(self.events) if event.kind in BEGINS), {})

    @property
    def unusual(self) -> dict[str, Any]:
        """The options that are not the defaults."""
        return {} if self.config is None else _different(self.config, TrainConfig())

    @property
    def samples(self) -> list[Event]:
        """What the model wrote, the latest of each step, in the order of steps; `pieces` tells it by tokens."""
        by_step = {event.step: event for event in self.events if event.kind == "sample"}
        return [by_step[step] for step in sorted(by_step)]

    @property
    def marked(self) -> list[Event]:
        """What is marked on the curves."""
        return [event for event in self.events if event.kind in MARKED]

    @property
    def core_hours(self) -> float | None:
        """Processors times hours of training; None where the run does not say how many."""
        threads, seconds = self.facts.get("threads"), self.history.columns["elapsed_s"]
        return None if not isinstance(threads, int) or not len(seconds) else threads * float(seconds[-1]) / 3600


def told(path: Path) -> Told:
    """A run directory. Raises UsageError where there is nothing to tell of, FormatError for what no run wrote."""
    if not path.is_dir():
        raise UsageError(f"{path} is no run directory")
    metrics = rundir.metrics_path(path)
    if not metrics.is_file():
        raise UsageError(f"{path} has no metrics.jsonl: nothing has been trained there")
    history, config = read(metrics), rundir.read_config(path)
    if config and config.clip > 0:
        history.columns["clipped"] = _share_before(history.columns["grad_norm"] > config.clip)
    return Told(path.absolute().name, history, config, tuple(events.read(path / "events.jsonl")))


def _share_before(which: NDArray[np.bool_]) -> Column:
    """At each step, the share among the last CLIPPED_OF."""
    counts = np.concatenate([[0], np.cumsum(which)])
    ends = np.arange(1, len(counts))
    begins = np.maximum(ends - CLIPPED_OF, 0)
    shares: Column = (counts[ends] - counts[begins]) / (ends - begins)
    return shares


def pieces(sample: Event) -> list[tuple[str, float | None]]:
    """What each token adds to a sample, and its loss; the whole sample where the event does not say."""
    try:
        return msgspec.convert(sample.facts["tokens"], list[tuple[str, float | None]])
    except (KeyError, msgspec.ValidationError):
        return [(sample.text, None)]


def differences(runs: list[Told]) -> dict[str, list[Any]]:
    """The options in which runs differ, each with its value in every run; None where a run does not say."""
    options = [{} if run.config is None else _options(run.config) for run in runs]
    names = dict.fromkeys(name for each in options for name in each)
    found = {name: [each.get(name) for each in options] for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def _options(config: TrainConfig) -> dict[str, Any]:
    """By name, as they are given."""
    values = msgspec.structs.asdict(config)
    factors = {name: tuple(f"{k}={v:g}" for k, v in values[name].items()) for name in ("lr_of", "decay_of")}
    return values | factors | {"optimizer": spelled(config.optimizer)}


def _different(config: TrainConfig, usual: TrainConfig) -> dict[str, Any]:
    values, defaults = _options(config), _options(usual)
    return {name: value for name, value in values.items() if value != defaults[name]}
