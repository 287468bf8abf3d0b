"""The options of a training run: `ggmlgraph train` takes them, a run directory keeps them, loop.py follows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypedDict

import msgspec

from ggmlgraph.errors import UsageError
from ggmlgraph.execution.optimizers import AdamW, AnyOptimizer

BUILTIN, STDIN = "builtin:", "-"  # texts that are no files (data/sources.py)
GIVEN = "given:"  # instead of a file: what a Python program gives
WARMUP_SHARE = 10  # of the steps, one in so many, at most 100
FINAL_LR = 0.1  # of the peak, where cosine and linear schedules end, as in nanoGPT


class TrainConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a run; `run/config.json` holds them."""

    data: tuple[str, ...] = ()
    val_data: tuple[str, ...] = ()
    mix: tuple[str, ...] = ()  # NAME=WEIGHT:SOURCE, or NAME:SOURCE with proportions, instead of data
    proportions: Literal["llama", "redpajama"] | None = None
    input: tuple[str, ...] = ()  # NAME=FILE.npy or NAME=GIVEN, instead of a text
    targets: str | None = None  # FILE.npy or GIVEN
    params: tuple[str, ...] = ()  # see execution/roles.py
    loss: str | None = None
    steps: int = 300
    batch: int = 16  # windows of a micro-batch
    accumulate: int = 1  # micro-batches of a step
    slots: int = 1  # equal parts of the micro-batches, which processes share (execution/slots.py)
    ctx: int = 64
    optimizer: AnyOptimizer = AdamW()
    lr: float = 1e-3  # at its peak
    lr_of: dict[str, float] = {}  # factors by pattern of names; see Runtime
    decay_of: dict[str, float] = {}
    freeze: tuple[str, ...] = ()
    warmup: int = 30  # steps
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.1
    clip: float = 1.0  # largest gradient norm; 0: any
    clip_value: float = 0.0  # largest number of a gradient; 0: any
    ema: float = 0.0  # share of an average of the weights that stays in a step; 0: no average
    seed: int = 0
    matmul_precision: Literal["float32", "bf16"] = "float32"
    eval_every: int = 50  # steps; 0: at the end only
    sample_every: int = 100
    save_every: int = 100
    layers_every: int = 50  # steps between looks at layers and memory; 0: none
    keep: int = 3  # newest checkpoints
    keep_every: int = 0  # steps between checkpoints that are kept for good; 0: none
    spikes: Literal["tell", "rollback"] = "tell"  # losses that leap, see watch.py
    tensorboard: bool = False  # whether the metrics are written for TensorBoard too
    prompt: str | None = None
    predict: int = 64  # tokens of a sample; 0: no samples

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> TrainConfig:
        """Some options, the others as they are by default. Raises UsageError for what is none, or no value of one."""
        for name in options:
            if name not in cls.__struct_fields__:
                close = get_close_matches(name, cls.__struct_fields__, 1)
                raise UsageError(f"training has no option {name!r}{f': did you mean {close[0]!r}?' if close else ''}")
        try:
            config = msgspec.convert(dict(options), cls)
        except msgspec.ValidationError as error:
            what, _, where = str(error).partition(" - at `$.")
            raise UsageError(f"{where.rstrip('`')}: {what}") from None
        usual = {
            "lr": config.optimizer.usual_lr,
            "weight_decay": config.optimizer.usual_decay,
            "warmup": min(100, config.steps // WARMUP_SHARE),
        }
        return msgspec.structs.replace(config, **{**usual, **{k: v for k, v in options.items() if k in usual}})

    def __post_init__(self) -> None:
        bounds = {"steps": 1, "batch": 1, "accumulate": 1, "slots": 1, "ctx": 1, "warmup": 0, "eval_every": 0,
                  "sample_every": 0, "save_every": 0, "layers_every": 0, "keep": 1, "keep_every": 0, "predict": 0,
                  "seed": 0}  # fmt: skip
        for name, least in bounds.items():
            if getattr(self, name) < least:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least {least}")
        for name in ("lr", "weight_decay", "clip", "clip_value"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"--{name.replace('_', '-')} {value} must be 0 or more")

    def options(self) -> dict[str, Any]:
        """As `of` takes them, JSON values."""
        options: dict[str, Any] = msgspec.to_builtins(self)
        return options

    def absolute(self) -> TrainConfig:
        """The same options with the files named by absolute paths."""
        return msgspec.structs.replace(
            self,
            data=tuple(map(_absolute, self.data)),
            val_data=tuple(map(_absolute, self.val_data)),
            mix=tuple(f"{part}:{_absolute(spec)}" for part, _, spec in (each.partition(":") for each in self.mix)),
            input=tuple(f"{name}={_absolute(path)}" for name, _, path in (x.partition("=") for x in self.input)),
            targets=self.targets and _absolute(self.targets),
        )

    @property
    def is_text(self) -> bool:
        """Whether the data are a text and not numpy files."""
        return not (self.input or self.targets)

    @property
    def windows_per_step(self) -> int:
        return self.batch * self.accumulate

    def phase_at(self, step: int) -> str:
        """The part of the schedule that step 1, 2, … is in."""
        return "warm-up" if step <= self.warmup else self.schedule

    def lr_at(self, step: int) -> float:
        """The learning rate of step 1, 2, …: a linear warm-up to `lr`, then the schedule, which ends at lr/10."""
        if step <= self.warmup:
            return self.lr * step / self.warmup
        if self.schedule == "constant":
            return self.lr
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        left = 0.5 * (1 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1 - done
        return self.lr * (FINAL_LR + (1 - FINAL_LR) * left)


def _absolute(source: str) -> str:
    """What a file is called from anywhere."""
    is_file = not source.startswith((BUILTIN, GIVEN)) and source != STDIN
    return str(Path(source).absolute()) if is_file else source


class Options(TypedDict, total=False):
    """The fields of TrainConfig that `Trainer` takes by name, for type checkers."""

    val_data: tuple[str, ...]
    mix: tuple[str, ...]
    proportions: Literal["llama", "redpajama"] | None
    params: tuple[str, ...]
    loss: str | None
    steps: int
    batch: int
    accumulate: int
    slots: int
    ctx: int
    optimizer: AnyOptimizer
    lr: float
    lr_of: dict[str, float]
    decay_of: dict[str, float]
    freeze: tuple[str, ...]
    warmup: int
    schedule: Literal["cosine", "linear", "constant"]
    weight_decay: float
    clip: float
    clip_value: float
    ema: float
    seed: int
    matmul_precision: Literal["float32", "bf16"]
    eval_every: int
    sample_every: int
    save_every: int
    keep: int
    keep_every: int
    layers_every: int
    tensorboard: bool
    spikes: Literal["tell", "rollback"]
    prompt: str | None
    predict: int
