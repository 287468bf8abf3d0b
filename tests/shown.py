"""What a page shows beside what was printed: the same lines, where times, speeds, memory and the machine may differ.

Losses may differ by a few percent: another processor adds up in another order. Used by test_readme.py and
test_notebook.py.
"""

from __future__ import annotations

import re

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")
LOSS = re.compile(r"\b(?:loss|val|val_loss) (\d+\.\d+)")
LIVE = re.compile(r"step +\d+/\d+ (?!.* val )")  # lines between validations, of which there are more the slower it is
MOST_APART = 0.1  # of losses, of the larger one, or absolutely where they are small
MACHINE = re.compile(r"\d+ threads, \w+")


def assert_shown(shown: str, printed: str) -> None:
    """Whether a page shows what was printed."""
    left, right = _lines(shown), _lines(printed)
    assert [_form(line) for line in left] == [_form(line) for line in right]
    for one, other in zip(left, right, strict=True):
        for a, b in zip(map(float, LOSS.findall(one)), map(float, LOSS.findall(other)), strict=True):
            assert abs(a - b) <= MOST_APART * max(a, b, 0.5), (one, other)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines() if not LIVE.match(line)]


def _form(line: str) -> str:
    """Without what may differ: numbers that follow a name of time, speed, memory or loss."""
    line = MACHINE.sub("N threads", line)
    is_measured = re.match(r"step |memory |machine |<Outcome|\S+ in \S+ s", line)
    return re.sub(r"[KMG]iB", "iB", NUMBER.sub("N", line)) if is_measured else line
