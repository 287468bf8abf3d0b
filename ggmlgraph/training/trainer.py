"""The training loop: steps, validation, samples, checkpoints, and how a run ends.

A run is a function of its graph, text and options: the learning rate and the batch of a step follow from the step's
number, samples draw from a stream named by it. So a run that was stopped and resumed, even killed, has the metrics
and weights of one that never stopped. Used by `ggmlgraph train`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ggmlgraph.errors import CheckpointError, GGError
from ggmlgraph.execution import checkpoint
from ggmlgraph.execution.feeder import Batch
from ggmlgraph.execution.runtime import Runtime, StepResult
from ggmlgraph.training.config import TrainConfig
from ggmlgraph.training.console import Console
from ggmlgraph.training.events import EventsFile, Kind
from ggmlgraph.training.metrics import MetricsFile, StepMetrics
from ggmlgraph.training.rundir import RunDirectory, prune, step_directory
from ggmlgraph.training.stopping import StopRequest

MAX_SKIPPED = 5  # updates in a row whose loss or gradient is not finite, before the run gives up
MAX_UNSAVED = 3  # checkpoints in a row that cannot be saved, before the run gives up


class Progress(msgspec.Struct):
    """The counters of a run, part of every checkpoint."""

    step: int = 0  # steps done
    n_samples: int = 0  # windows or samples seen, which is the position in the data
    n_tokens: int = 0
    n_skipped: int = 0  # updates skipped because loss or gradient was not finite
    n_skipped_in_a_row: int = 0
    elapsed_s: float = 0.0


class Origin(msgspec.Struct, frozen=True):
    """What decides which tokens a step sees: it must not change when a run is resumed."""

    seed: int
    ctx: int
    data: str  # digest of the token file
    order: int = 1  # see data/order.py; runs that do not say it are of the first version


class TrainingData(Protocol):
    """What a run is trained on: a text (data/text.py) or numpy files (data/arrays.py)."""

    digest: str  # of the content: the same wherever it lies
    order: int  # version of the order in which samples come (data/order.py); a resumed run keeps its own

    def samples(self, first: int, n: int) -> Batch:
        """The n windows or samples of the run from number `first` on: the same whenever, and however, asked for."""

    def evaluate(self, runtime: Runtime) -> tuple[float, float | None]:
        """Mean loss of the part kept for validation, and the share of right answers where that means something."""


class Trainer:
    """One run. `sample(step)` is a text the model makes up, or None for no samples."""

    def __init__(
        self,
        runtime: Runtime,
        data: TrainingData,
        config: TrainConfig,
        run: RunDirectory,
        *,
        sample: Callable[[int], str] | None,
    ) -> None:
        checkpoint.check_names(runtime)
        self.runtime, self.data, self.config, self.run_directory = runtime, data, config, run
        self.origin = Origin(config.seed, config.ctx, data.digest, data.order)
        self.progress = Progress()
        self._events = EventsFile(run.events_path)
        self._sample = sample
        self._problem: str | None = None  # why the last line of metrics could not be written
        self._n_unsaved = 0  # checkpoints in a row that could not be saved

    def resume(self, directory: Path) -> None:
        """Go on from a checkpoint. Raises CheckpointError if it is not one of this graph, text and data options."""
        progress, origin = _state_of(directory)
        self.data.order = origin.order
        self.origin = msgspec.structs.replace(self.origin, order=origin.order)
        if origin != self.origin:
            raise CheckpointError(f"{directory} cannot be continued: {_difference(origin, self.origin)}")
        checkpoint.load(self.runtime, directory)
        self.progress = progress

    def run(self, console: Console, facts: Mapping[str, Any] | None = None) -> bool:
        """Train up to the last step, until a signal, or until nobody is there to be told; whether all steps are done.

        facts: what makes the run what it is, kept with its events. Raises GGError after too many updates in a row that
        were not finite, or checkpoints that could not be saved.
        """
        path = self.run_directory.metrics_path
        self.happened("resume" if self.progress.step else "start", **facts or {})
        with MetricsFile(path, self.progress.step) as metrics, StopRequest(console.acknowledge) as stop:
            while self.progress.step < self.config.steps and not (stop.asked or console.is_gone):
                self._one_step(console, metrics)
                if self._due(self.config.save_every):
                    self._save(console, metrics)
                if not stop.asked:
                    self._tell_sample(console)
            finished = self.progress.step >= self.config.steps
            if not finished and self.progress.step and not self._directory.exists():
                self._save(console, metrics)
        self.happened("end" if finished else "stop")
        return finished

    def happened(self, kind: Kind, text: str = "", **facts: Any) -> None:
        """Keep an event of the step that was done last."""
        self._events.write(kind, self.progress.step, text, **facts)

    @property
    def _directory(self) -> Path:
        """Of a checkpoint of this step."""
        return step_directory(self.run_directory.path, self.progress.step)

    def _due(self, every: int) -> bool:
        step = self.progress.step
        return step == self.config.steps or (every > 0 and step % every == 0)

    # ------------------------------------------------------------ one step

    def _one_step(self, console: Console, metrics: MetricsFile) -> None:
        config, progress = self.config, self.progress
        started = time.perf_counter()
        lr = config.lr_at(progress.step + 1)
        batch = self.data.samples(progress.n_samples, config.windows_per_step)
        n_tokens = config.windows_per_step * config.ctx
        result = self.runtime.step(batch, lr=lr, weight_decay=config.weight_decay, clip=config.clip, betas=config.betas)
        seconds = time.perf_counter() - started
        progress.step += 1
        progress.n_samples += config.windows_per_step
        progress.n_tokens += n_tokens
        val_loss, val_accuracy = self.evaluate() if self._due(config.eval_every) else (None, None)
        progress.elapsed_s += time.perf_counter() - started
        line = StepMetrics(
            step=progress.step,
            tokens=progress.n_tokens,
            loss=_finite(result.loss),
            lr=lr,
            grad_norm=_finite(result.grad_norm),
            tokens_per_s=round(n_tokens / seconds, 1),
            elapsed_s=round(progress.elapsed_s, 3),
            val_loss=val_loss,
            val_accuracy=val_accuracy,
        )
        if (problem := metrics.write(line)) is not None and problem != self._problem:
            console.say(f"warning: {self.run_directory.metrics_path}: {problem}")
        self._problem = problem
        console.progress(line)
        self._count_skipped(result, console)

    def _tell_sample(self, console: Console) -> None:
        step, every = self.progress.step, self.config.sample_every
        if self._sample and every and step < self.config.steps and step % every == 0:
            text = self._sample(step)
            console.sample(step, text)
            self.happened("sample", text)

    def _count_skipped(self, result: StepResult, console: Console) -> None:
        progress = self.progress
        if math.isfinite(result.loss) and math.isfinite(result.grad_norm):
            progress.n_skipped_in_a_row = 0
            return
        progress.n_skipped += 1
        progress.n_skipped_in_a_row += 1
        console.say(f"warning: step {progress.step}: the gradient is not finite; the weights were left as they were")
        self.happened("skip", "the gradient is not finite")
        if progress.n_skipped_in_a_row >= MAX_SKIPPED:
            raise GGError(
                f"the gradient was not finite {MAX_SKIPPED} times in a row; try a lower --lr or --clip, from the last "
                "checkpoint with --resume auto"
            )

    def evaluate(self) -> tuple[float | None, float | None]:
        """What `data.evaluate` finds; a loss that is not finite is None."""
        loss, accuracy = self.data.evaluate(self.runtime)
        return _finite(loss), accuracy

    # ------------------------------------------------------------ saving

    def _save(self, console: Console, metrics: MetricsFile) -> None:
        """Write a checkpoint; what prevents it is said and training goes on.

        Raises CheckpointError if the last few could not be saved either: what is computed further would be lost.
        """
        try:
            metrics.sync()
            state = {"progress": msgspec.to_builtins(self.progress), "origin": msgspec.to_builtins(self.origin)}
            checkpoint.save(self.runtime, self._directory, state)
        except CheckpointError as error:
            self._n_unsaved += 1
            console.say(f"warning: no checkpoint of step {self.progress.step}: {error}")
            if self._n_unsaved >= MAX_UNSAVED:
                raise CheckpointError(
                    f"{MAX_UNSAVED} checkpoints in a row could not be saved: {error}; mend that, then go on from the "
                    "last one that was, if any, with --resume auto"
                ) from None
        else:
            self._n_unsaved = 0
            self.happened("checkpoint")
            prune(self.run_directory.path)


def origin_of(directory: Path) -> Origin:
    """What decided which tokens the steps before a checkpoint saw. Raises CheckpointError."""
    return _state_of(directory)[1]


def _state_of(directory: Path) -> tuple[Progress, Origin]:
    state = checkpoint.verify(directory, ()).state
    try:
        progress, origin = msgspec.convert(state["progress"], Progress), msgspec.convert(state["origin"], Origin)
        if "n_samples" not in state["progress"]:  # of a run that had as many windows in every step
            progress.n_samples = progress.step * int(state["origin"]["windows_per_step"])
        return progress, origin
    except (msgspec.ValidationError, KeyError, TypeError, ValueError):
        raise CheckpointError(f"{directory} was not written by a training run") from None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _difference(saved: Origin, now: Origin) -> str:
    names = {"seed": "--seed", "ctx": "--ctx", "data": "the data"}
    parts = []
    for field, name in names.items():
        before, after = getattr(saved, field), getattr(now, field)
        if before != after:
            parts.append("the data are others" if field == "data" else f"{name} was {before}, now {after}")
    return ", ".join(parts)
