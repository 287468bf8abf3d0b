"""Many cases in one item, and what the run says at its end: cases, skips by kind, how much of the op table was covered.

An item of pytest costs more than most cases of the op table. `check_each` runs many in one and tells each that fails
in a line of its own. Where a case ends the process (a sanitizer's finding), pytest-xdist's worker leaves its name.

A skip's reason begins with "for want of", and then names a package, a program or a file, or with "no such case:".
"""

from __future__ import annotations

import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

# Whoever starts the tests in the background may have signals ignored, which processes inherit.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture
def check_each(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Runs `check(case)` for each case. Fails with a line for each that raised, which names it, and one traceback."""

    def run(cases: Iterable[Any], check: Callable[[Any], None], where: str = "") -> None:
        failures, first, n_passed = [], "", 0
        last_words = _last_words(os.environ["PYTEST_XDIST_TESTRUNUID"], worker) if (worker := _worker()) else None
        for case in cases:
            name = f"{case} {where}".rstrip()
            if last_words:
                last_words.write_text(name)
            try:
                check(case)
                n_passed += 1
            except Exception as e:
                failures.append(f"{name}: {' '.join(f'{type(e).__name__}: {e}'.split())[:300]}")
                first = first or traceback.format_exc()
        if last_words:
            last_words.unlink(missing_ok=True)
        record_property("passed", n_passed)
        record_property("failed", len(failures))
        if failures:
            pytest.fail("\n".join([*failures, "", "the first of them:", first]), pytrace=False)

    return run


def _worker() -> str | None:
    """The name of this process among those of pytest-xdist."""
    return os.environ.get("PYTEST_XDIST_WORKER")


def _last_words(run: str, worker: str) -> Path:
    """Where a worker writes which case it runs."""
    return Path(tempfile.gettempdir()) / f"ggmlgraph-{run}-{worker}"


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(report: Any) -> None:
    """Put the case in which a worker ended first."""
    path = _last_words(report.node.workerinput["testrunuid"], report.node.workerinput["workerid"])
    if path.exists():
        report.longrepr = f"{path.read_text()}: the process ended\n{report.longrepr}"
        path.unlink()


def _count(reports: Iterable[Any], outcome: str) -> int:
    """Cases of this outcome; an item without a count of its own is one."""
    return sum(dict(r.user_properties).get(outcome, int(r.outcome == outcome)) for r in reports)


def _skips(reports: list[Any]) -> str:
    reasons = [str(r.longrepr[2]).removeprefix("Skipped: ") for r in reports]
    kinds = {"for want of something": "for want of ", "because the case does not exist": "no such case: "}
    counts = {kind: sum(reason.startswith(start) for reason in reasons) for kind, start in kinds.items()}
    counts["without such a reason"] = len(reasons) - sum(counts.values())
    return ", ".join(f"{n} {kind}" for kind, n in counts.items() if n) or "none"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The number of cases, and the coverage of the op table where its tests ran."""
    stats = terminalreporter.stats
    terminalreporter.write_line(f"skipped: {_skips(stats.get('skipped', []))}")
    ran = stats.get("failed", []) + [r for r in stats.get("passed", []) if r.when == "call"]
    n_failed = _count(ran, "failed") + len(stats.get("error", []))
    terminalreporter.write_line(f"cases: {_count(ran, 'passed')} passed, {n_failed} failed")
    of_ops = [r for r in ran if "test_ops.py" in r.nodeid]
    if not of_ops:
        return
    from ggmlgraph.core.levels import isa_levels
    from ggmlgraph.table.op import TABLE

    kinds = {"forward": "forward_is", "gradient": "difference_quotient", "threads": "number_of_threads"}
    counts = ", ".join(
        f"{_count((r for r in of_ops if text in r.nodeid), 'passed')} {kind}" for kind, text in kinds.items()
    )
    levels = ", ".join(isa_levels())
    terminalreporter.write_line(f"ops: {len(TABLE)} in the table; cases passed: {counts}; ISA: {levels}")
