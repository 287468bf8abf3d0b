"""What a person watching a training run sees: a live line on a terminal, plain lines every few seconds elsewhere.

Used by the trainer, which also sends its samples and warnings through here so that they do not tear the live line.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console as RichConsole
from rich.live import Live
from rich.text import Text

from ggmlgraph.training.metrics import StepMetrics

PLAIN_EVERY = 5.0  # seconds between lines where there is no terminal
SMOOTHING = 0.9  # of the speed shown


@dataclass(frozen=True)
class Rate:
    """What turns seconds per step into what is shown."""

    n_steps: int  # of the whole run
    tokens: int  # a step; or samples
    flops: float  # a step
    peak: float  # flop/s of the machine
    measure_peak: Callable[[], float]
    unit: str = "tokens"


class Console:
    """Progress of one run; a context manager."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._peak = rate.peak
        self._rich = RichConsole(highlight=False, markup=False, soft_wrap=True)
        self._live = Live(console=self._rich, auto_refresh=False) if self._rich.is_terminal else None
        self._step_s = 0.0  # smoothed
        self._val_loss: float | None = None
        self._val_accuracy: float | None = None
        self._last_line = -PLAIN_EVERY

    def __enter__(self) -> Console:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._rich.print(text)

    def progress(self, metrics: StepMetrics) -> None:
        """Show a step. On a terminal every one, elsewhere those with a validation loss and one every few seconds."""
        step_s = self._rate.tokens / metrics.tokens_per_s
        self._step_s = SMOOTHING * self._step_s + (1 - SMOOTHING) * step_s if self._step_s else step_s
        if metrics.val_loss is not None:
            self._val_loss, self._val_accuracy = metrics.val_loss, metrics.val_accuracy
        line = self._line(metrics)
        if self._live:
            self._live.update(Text(line), refresh=True)
        elif metrics.val_loss is not None or time.monotonic() - self._last_line >= PLAIN_EVERY:
            self._last_line = time.monotonic()
            self.say(line)

    def _line(self, m: StepMetrics) -> str:
        parts = [f"step {m.step:>{len(str(self._rate.n_steps))}}/{self._rate.n_steps}", f"loss {_number(m.loss)}"]
        if self._val_loss is not None:
            parts.append(f"val {self._val_loss:.4f}")
        if self._val_accuracy is not None:
            parts.append(f"right {self._val_accuracy:.1%}")
        parts += [
            f"lr {m.lr:.2e}",
            f"grad {_number(m.grad_norm)}",
            f"{self._rate.tokens / self._step_s:,.0f} {self._rate.unit}/s",
        ]
        parts.append(f"{self._share_of_peak():.0%} of peak")
        parts.append(f"ETA {duration((self._rate.n_steps - m.step) * self._step_s)}")
        return "  ".join(parts)

    def _share_of_peak(self) -> float:
        """A share above 1 shows that the peak was measured while the machine was busy; it is then measured again."""
        flops = self._rate.flops / self._step_s
        if flops > self._peak:
            self._peak = max(self._peak, self._rate.measure_peak())
        return flops / self._peak


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def duration(seconds: float) -> str:
    """ "1:02:03" or "2:03"."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"
