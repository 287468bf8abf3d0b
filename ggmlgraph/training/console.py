"""What a person watching a training run sees: a live bar and curve on a terminal, plain lines elsewhere.

All that is said of a run goes through here, samples and warnings too, so that nothing tears the live line.
A terminal that is no longer there, as after a lost connection, is no error: `is_gone` then, and nothing more is shown.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from rich.console import Console as RichConsole
from rich.live import Live
from rich.text import Text

from ggmlgraph.errors import escaped
from ggmlgraph.training.metrics import StepMetrics
from ggmlgraph.training.trend import Trend

PLAIN_EVERY = 5.0  # seconds between lines where there is no terminal
LIVE_EVERY = 0.1  # and between pictures where there is one
WIDEST = 120  # columns of the live lines
GAP = "  "  # between the parts of a line
BARS = ("━", "─")  # of what is done, and of what is left
ASCII_BARS = ("#", "-")  # where a terminal knows no others
SMOOTHING = 0.9  # of the speed shown
NOBODY = (errno.EIO, errno.EPIPE, errno.EBADF)  # writing to a terminal or pipe that is closed
WHITE = "\n\t"  # control characters of a text that are shown as they are


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
    """Progress of one run; a context manager. tell: is told the lines, instead of standard output."""

    def __init__(self, rate: Rate, tell: Callable[[str], object] | None = None) -> None:
        self.is_gone = False
        self._rate = rate
        self._peak = rate.peak
        self._rich = _Rich(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._tell = tell
        has_live_lines = tell is None and self._rich.is_terminal and not self._rich.is_dumb_terminal
        self._live = Live(console=self._rich, auto_refresh=False, transient=True) if has_live_lines else None
        self._bars = ASCII_BARS if self._rich.options.ascii_only else BARS
        self._trend = Trend()
        self._best = math.inf  # validation loss
        self._step_s = 0.0  # smoothed
        self._last_shown = -PLAIN_EVERY

    def __enter__(self) -> Console:
        if self._live:
            self._show(self._live.start)
            self._show(self._rich.show_cursor)  # which a process that is killed could not do
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._show(self._live.stop)

    def say(self, text: str) -> None:
        """A line that stays. Names in it are other people's, and texts a model's: nothing in it steers a terminal."""
        self._print(Text(escaped(text, keep=WHITE), "yellow" if text.startswith("warning:") else ""))

    def acknowledge(self) -> None:
        """That a signal has arrived."""
        self.say("stopping: this step is finished and saved first; a second Ctrl-C ends at once")

    def sample(self, step: int, text: str) -> None:
        """What the model writes after a step; control characters that it has learnt to write are escaped."""
        shown = Text(escaped(f"sample, step {step}: {text}", keep=WHITE))
        shown.stylize("cyan", 0, shown.plain.index(":") + 1)
        self._print(shown)

    def progress(self, metrics: StepMetrics) -> None:
        """Show a step: on a terminal as live lines, elsewhere as a line every few seconds. Validations stay."""
        step_s = self._rate.tokens / metrics.tokens_per_s
        self._step_s = SMOOTHING * self._step_s + (1 - SMOOTHING) * step_s if self._step_s else step_s
        self._trend.add(metrics.loss)
        is_due = time.monotonic() - self._last_shown >= (LIVE_EVERY if self._live else PLAIN_EVERY)
        if not is_due and metrics.val_loss is None:
            return
        self._last_shown = time.monotonic()
        parts = self._parts(metrics)
        if metrics.val_loss is not None or not self._live:
            self._print(Text(GAP.join(parts), "green" if self._is_best(metrics.val_loss) else ""))
        if self._live:
            self._show(partial(self._live.update, self._picture(metrics, parts), refresh=True))

    def _is_best(self, val_loss: float | None) -> bool:
        best = self._best
        self._best = min(best, math.inf if val_loss is None else val_loss)
        return self._best < best

    def _parts(self, m: StepMetrics) -> list[str]:
        """What is shown of a step, the most important first."""
        parts = [f"step {m.step:>{len(str(self._rate.n_steps))}}/{self._rate.n_steps}", f"ETA {self._left(m)}"]
        parts.append(f"loss {_number(m.loss)}")
        if m.val_loss is not None:
            parts.append(f"val {m.val_loss:.4f}")
        if m.val_bits_per_byte is not None:
            parts.append(f"{m.val_bits_per_byte:.4f} bits/byte")
        if m.val_accuracy is not None:
            parts.append(f"right {m.val_accuracy:.1%}")
        return [*parts, *self._speed(m)]

    def _left(self, m: StepMetrics) -> str:
        return duration((self._rate.n_steps - m.step) * self._step_s)

    def _speed(self, m: StepMetrics) -> list[str]:
        return [
            f"{self._rate.tokens / self._step_s:,.0f} {self._rate.unit}/s",
            f"grad {_number(m.grad_norm)}",
            f"lr {m.lr:.2e}",
            f"{self._share_of_peak():.0%} of peak",
        ]

    def _picture(self, m: StepMetrics, parts: list[str]) -> Text:
        """The live lines: how far the run is, then how it goes; each fits the terminal, whatever its width."""
        width = max(1, min(WIDEST, self._rich.width - 1))  # a full line would wrap on some terminals
        done = m.step / self._rate.n_steps
        told = _fitted([f"{done:4.0%}", f"ETA {self._left(m)}", parts[0]], width)
        bar = max(0, width - len(told) - len(GAP))
        full = round(bar * done)
        loss, speed = f"loss {_number(m.loss)}", self._speed(m)
        curve = "" if self._bars is ASCII_BARS else self._trend.drawn((width - len(loss)) // 3)
        return Text.assemble(
            (self._bars[0] * full, "blue"),
            (self._bars[1] * (bar - full), "dim"),
            f"{GAP if bar else ''}{told}\n",
            (loss, "bold"),
            " " if curve else "",
            (curve, "blue"),
            _fitted(["", *speed], width - len(loss) - len(curve) - bool(curve)),
        )

    def _print(self, text: Text) -> None:
        self._show(partial(self._tell, text.plain) if self._tell else partial(self._rich.print, text))

    def _show(self, show: Callable[[], object]) -> None:
        """Show something, unless nobody is there any more. What a full disk does not take of a log is not shown."""
        if not self.is_gone:
            try:
                show()
            except OSError as error:
                self.is_gone = error.errno in NOBODY

    def _share_of_peak(self) -> float:
        """A share above 1 shows that the peak was measured while the machine was busy; it is then measured again."""
        flops = self._rate.flops / self._step_s
        if flops > self._peak:
            self._peak = max(self._peak, self._rate.measure_peak())
        return flops / self._peak


class _Rich(RichConsole):
    def on_broken_pipe(self) -> None:
        """Where rich would exit the program."""
        raise


def _fitted(parts: list[str], width: int) -> str:
    """As many of the parts, from the first on, as a line has room for."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 2 + len(part) > width:
            break
        line += f"  {part}"
    return line


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def duration(seconds: float) -> str:
    """ "1:02:03" or "2:03"."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"
