"""The training loop: steps, validation, samples, checkpoints, and how a run ends.

A run is a function of its graph, text and options: the learning rate and the batch of a step follow from the step's
number, samples draw from a stream named by it. So a run that was stopped and resumed, even killed, has the metrics
and weights of one that never stopped. `gg.Trainer` prepares what it needs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ggmlgraph import machine
from ggmlgraph.errors import CheckpointError, GGError
from ggmlgraph.execution import checkpoint
from ggmlgraph.execution.checkpoint import NotFiniteError
from ggmlgraph.execution.feeder import Batch
from ggmlgraph.execution.runtime import Runtime, StepResult
from ggmlgraph.execution.saver import Saver
from ggmlgraph.training.config import TrainConfig
from ggmlgraph.training.console import Console
from ggmlgraph.training.events import EventsFile, Kind, encodable
from ggmlgraph.training.layers import Layers
from ggmlgraph.training.metrics import MetricsFile, StepMetrics
from ggmlgraph.training.rundir import RunDirectory, delete, prune, put_name, step_directory, step_of, steps
from ggmlgraph.training.stopping import StopRequest
from ggmlgraph.training.tensorboard import TensorBoard
from ggmlgraph.training.watch import MOST_IN_A_ROW, Watch

Pieces = Sequence[tuple[str, float | None]]  # of a text: what each token adds to it, and its loss
MAX_ROLLBACKS = 3  # to the same checkpoint, before the run gives up
BEST = "best"  # name of the checkpoint with the least validation loss
MAX_UNSAVED = 3  # checkpoints in a row that cannot be saved, before the run gives up


class Progress(msgspec.Struct):
    """The counters of a run, part of every checkpoint."""

    step: int = 0  # steps done
    n_samples: int = 0  # windows or samples seen, or passed over, which is the position in the data
    n_tokens: int = 0
    n_skipped: int = 0  # updates skipped because loss or gradient was not finite
    elapsed_s: float = 0.0
    watch: Watch = msgspec.field(default_factory=Watch)
    n_rollbacks: int = 0
    rolled_back_to: int = 0  # step of the latest
    n_rollbacks_there: int = 0  # in a row
    best_step: int = 0  # of the checkpoint with the least validation loss, of those that were validated; 0: none was
    best_val_loss: float | None = None


class Origin(msgspec.Struct, frozen=True):
    """What decides which tokens a step sees: it must not change when a run is resumed."""

    seed: int
    ctx: int
    data: str  # digest of the token file
    order: int = 1  # see data/order.py; runs that do not say it are of the first version


class TrainingData(Protocol):
    """What a run is trained on: a text (data/text.py), arrays (data/arrays.py) or batches (data/batches.py)."""

    digest: str  # of the content: the same wherever it lies
    bits_per_nat: float | None  # of the text that was evaluated last: bits per byte = loss times this
    order: int  # version of the order in which samples come (data/order.py); a resumed run keeps its own

    def samples(self, first: int, n: int) -> Batch:
        """The n windows or samples of the run from number `first` on: the same whenever, and however, asked for."""

    def evaluate(self, runtime: Runtime) -> tuple[float, float | None]:
        """Mean loss of the part kept for validation, and the share of right answers where that means something."""


class Loop:
    """One run. `sample(step)` is a text the model makes up, or None for no samples."""

    def __init__(
        self,
        runtime: Runtime,
        data: TrainingData,
        config: TrainConfig,
        run: RunDirectory,
        *,
        sample: Callable[[int], Pieces] | None,
    ) -> None:
        checkpoint.check_names(runtime)
        self.runtime, self.data, self.config, self.run_directory = runtime, data, config, run
        self.origin = Origin(config.seed, config.ctx, data.digest, data.order)
        self.progress = Progress()
        self._events = EventsFile(run.events_path)
        self._sample = sample
        self._layers = Layers(runtime)
        self._problem: str | None = None  # why the last line of metrics could not be written
        self._n_unsaved = 0  # checkpoints in a row that could not be saved
        self._board: TensorBoard | None = None  # while a run goes on that writes one

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
        self.runtime.share()
        with (
            MetricsFile(path, self.progress.step) as metrics,
            self._tensorboard() as self._board,
            StopRequest(console.acknowledge) as stop,
            Saver(self.runtime) as self._saver,
        ):
            if self.progress.step and self.progress.watch.is_calm:
                self._tidy(self.progress.best_step)  # where the last sitting was killed while it did
            while not (stop.asked or console.is_gone) and not self._is_done(console, metrics):
                reason = self._one_step(console, metrics)
                reason = self._take_saved(console) or reason
                if reason is not None:
                    self._roll_back(reason, console, metrics)
                    continue
                if self._due(self.config.save_every):
                    self._save(console, metrics)
                if not stop.asked:
                    self._tell_sample(console)
            self._take_saved(console, wait=True)
            finished = self.progress.step >= self.config.steps
            if not finished and self.progress.step and not self._directory.exists():
                self._save(console, metrics)
                self._take_saved(console, wait=True)
        self.runtime.ranks.lead("end", {}, {})
        self.happened("end" if finished else "stop")
        return finished

    def _tensorboard(self) -> AbstractContextManager[TensorBoard | None]:
        folder = self.run_directory.path / "tensorboard"
        return TensorBoard(folder, self.progress.step) if self.config.tensorboard else nullcontext()

    def _is_done(self, console: Console, metrics: MetricsFile) -> bool:
        """Whether the last step is done and its checkpoint, if it could be written, is there."""
        if self.progress.step < self.config.steps:
            return False
        if (reason := self._take_saved(console, wait=True)) is not None:
            self._roll_back(reason, console, metrics)
        return self.progress.step >= self.config.steps

    def happened(self, kind: Kind, text: str = "", **facts: Any) -> None:
        """Keep an event of the step that was done last."""
        self._events.write(kind, self.progress.step, text, **facts)

    @property
    def _directory(self) -> Path:
        """Of a checkpoint of this step."""
        return step_directory(self.run_directory.path, self.progress.step)

    def told_sample(self, step: int) -> str:
        """The text that the model makes up after a step, kept with the run's events."""
        assert self._sample is not None
        pieces = self._sample(step)
        text = "".join(piece for piece, _ in pieces)
        self.happened("sample", text, tokens=[[encodable(piece), loss and round(loss, 4)] for piece, loss in pieces])
        return text

    def _due(self, every: int) -> bool:
        step = self.progress.step
        return step == self.config.steps or (every > 0 and step % every == 0)

    # ------------------------------------------------------------ one step

    def _one_step(self, console: Console, metrics: MetricsFile) -> str | None:
        """Do one, and tell it; why the run must go back, or None."""
        config, progress = self.config, self.progress
        started = time.perf_counter()
        lr = config.lr_at(progress.step + 1)
        self._tell_phase()
        is_seen = config.layers_every > 0 and (progress.step + 1) % config.layers_every == 0
        before = self._layers.weights() if is_seen else {}
        batch = self.data.samples(progress.n_samples, config.windows_per_step)
        n_tokens = config.windows_per_step * config.ctx
        result = self.runtime.step(
            batch, lr=lr, weight_decay=config.weight_decay, clip=config.clip, clip_value=config.clip_value
        )
        seconds = time.perf_counter() - started
        progress.step += 1
        progress.n_samples += config.windows_per_step
        progress.n_tokens += n_tokens
        layers = self._layers.sizes(before) if is_seen else None  # before another run takes the gradients' memory
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
            val_bits_per_byte=_product(val_loss, self.data.bits_per_nat),
            val_accuracy=val_accuracy,
            memory=machine.memory() if is_seen else None,
            layers=layers,
        )
        if (problem := metrics.write(line)) is not None and problem != self._problem:
            console.say(f"warning: {self.run_directory.metrics_path}: {problem}")
        self._problem = problem
        if self._board is not None:
            self._board.write(line)
        console.progress(line)
        if val_loss is not None and self._due(config.save_every) and val_loss < (progress.best_val_loss or math.inf):
            progress.best_step, progress.best_val_loss = progress.step, val_loss
        return self._what_is_wrong(result, console)

    def _tell_sample(self, console: Console) -> None:
        step, every = self.progress.step, self.config.sample_every
        if self._sample and every and step < self.config.steps and step % every == 0:
            console.sample(step, self.told_sample(step))

    def _tell_phase(self) -> None:
        """Keep that another part of the schedule begins with the next step; where a run begins needs no telling."""
        step, phase_at = self.progress.step, self.config.phase_at
        if step and phase_at(step) != phase_at(step + 1):
            self.happened("phase", phase_at(step + 1))

    def _what_is_wrong(self, result: StepResult, console: Console) -> str | None:
        """Why the run must go back; None if it can go on, whatever the last step was."""
        watch, step = self.progress.watch, self.progress.step
        if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
            self.progress.n_skipped += 1
            too_many = watch.skipped()
            console.say(f"warning: step {step}: the gradient is not finite; the weights were left as they were")
            self.happened("skip", "the gradient is not finite")
            return f"the gradient was not finite {MOST_IN_A_ROW} times in a row" if too_many else None
        z = watch.leap(result.loss)
        if z is None:
            return None
        if watch.n_leaps == 1:
            told = f"the loss leaps to {result.loss:.4f}, {z:.1f} deviations above the median of the last steps"
            console.say(f"warning: step {step}: {told}")
            self.happened("spike", told, loss=result.loss, z=round(z, 2))
        if not watch.has_leapt:
            return None
        if self.config.spikes == "rollback" and self._may_roll_back():
            return f"the loss leapt {MOST_IN_A_ROW} times in a row"
        watch.accept()
        return None

    # ------------------------------------------------------------ going back

    def _roll_back(self, reason: str, console: Console, metrics: MetricsFile) -> None:
        """Go on from the last good checkpoint, with other data than those after it, which are passed over.

        The same happens to a run that was stopped and resumed meanwhile: only checkpoints that every run saves count.
        Raises GGError if there is none, or if going back there did not help.
        """
        self._take_saved(console, wait=True)
        before = self.progress
        found = self._restored() if self._may_roll_back() else None
        if found is None:
            raise GGError(
                f"step {before.step}: {reason}; going back does not help: try a lower --lr or --clip, from the last "
                "checkpoint with --resume auto"
            )
        self.runtime.share()
        step = self.progress.step
        self.progress.n_samples = before.n_samples
        self.progress.elapsed_s = before.elapsed_s
        self.progress.n_skipped = before.n_skipped
        self.progress.n_rollbacks = before.n_rollbacks + 1
        self.progress.n_rollbacks_there = before.n_rollbacks_there + 1 if before.rolled_back_to == step else 1
        self.progress.rolled_back_to = step
        told = f"{reason}: back to step {step}, past the data since"
        console.say(f"warning: step {before.step}: {told}")
        self._events.write("rollback", before.step, told, to=step)
        for path in steps(self.run_directory.path):  # newest first: what is left if this is interrupted is a run's
            if step_of(path) > step:
                delete(path)
        self._tidy(self.progress.best_step)
        metrics.cut(step)
        if self._board is not None:
            self._board.go_on_from(step)

    def _may_roll_back(self) -> bool:
        progress = self.progress
        newest = next(self._scheduled(), None)
        is_same = newest is not None and step_of(newest) == progress.rolled_back_to
        return newest is not None and not (is_same and progress.n_rollbacks_there >= MAX_ROLLBACKS)

    def _scheduled(self) -> Iterator[Path]:
        """The checkpoints of this run, newest first, that were due and whose last step was as it should be."""
        every = self.config.save_every
        for path in steps(self.run_directory.path):
            if every and step_of(path) % every == 0:
                with suppress(CheckpointError):
                    if _state_of(path)[0].watch.is_calm:
                        yield path

    def _restored(self) -> Path | None:
        """The checkpoint that the runtime is set back to; None if there is none that is good."""
        for path in self._scheduled():
            with suppress(CheckpointError):
                self.resume(path)
                return path
        return None

    def evaluate(self) -> tuple[float | None, float | None]:
        """What `data.evaluate` finds; a loss that is not finite is None."""
        loss, accuracy = self.data.evaluate(self.runtime)
        return _finite(loss), accuracy

    # ------------------------------------------------------------ saving

    def _save(self, console: Console, metrics: MetricsFile) -> None:
        """Begin to write a checkpoint, in the background; one that is being written comes first."""
        self._take_saved(console, wait=True)
        self._saving, progress = self.progress.step, self.progress
        state = {"progress": msgspec.to_builtins(progress), "origin": msgspec.to_builtins(self.origin)}
        tidy = partial(self._tidy, progress.best_step) if progress.watch.is_calm else None
        if (problem := metrics.flush()) is not None:
            self._not_saved(
                CheckpointError(f"{self.run_directory.metrics_path}: cannot be written: {problem}"), console
            )
        else:
            self._saver.start(self._directory, state, before=metrics.sync, after=tidy)

    def _take_saved(self, console: Console, *, wait: bool = False) -> str | None:
        """Take note of a checkpoint that has been written; why the run must go back, or None.

        What prevented one is said and training goes on. Raises CheckpointError if the last few could not be saved
        either: what is computed further would be lost.
        """
        try:
            if self._saver.take(wait=wait):
                self._n_unsaved = 0
                self._events.write("checkpoint", self._saving)
        except NotFiniteError as error:
            return str(error)
        except CheckpointError as error:
            self._not_saved(error, console)
        return None

    def _not_saved(self, error: CheckpointError, console: Console) -> None:
        self._n_unsaved += 1
        console.say(f"warning: no checkpoint of step {self._saving}: {error}")
        if self._n_unsaved >= MAX_UNSAVED:
            raise CheckpointError(
                f"{MAX_UNSAVED} checkpoints in a row could not be saved: {error}; mend that, then go on from the "
                "last one that was, if any, with --resume auto"
            ) from None

    def _tidy(self, best_step: int) -> None:
        """Name the best checkpoint and delete those that nobody asked to keep."""
        config, run = self.config, self.run_directory.path
        put_name(run, BEST, best_step)
        prune(run, config.keep, config.save_every, config.keep_every)


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


def _product(loss: float | None, factor: float | None) -> float | None:
    return None if loss is None or factor is None else loss * factor


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
