"""How many threads run by default: affinity, quotas of control groups, variables of OpenMP and Slurm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ggmlgraph import machine


@pytest.fixture(autouse=True)
def many_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 processors without limits."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_own_cgroup", lambda: Path("slice/job"))
    for variable in machine.THREAD_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def limit(group: Path, name: str, text: str) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / name).write_text(text)


def test_affinity_counts() -> None:
    assert machine.n_threads() == 64


@pytest.mark.parametrize(("text", "n"), [("max 100000", 64), ("400000 100000", 4), ("50000 100000", 1), ("", 64)])
@pytest.mark.parametrize("group", [".", "slice", "slice/job"])
def test_quota_of_any_enclosing_group_counts(tmp_path: Path, group: str, text: str, n: int) -> None:
    limit(tmp_path / group, "cpu.max", text)
    assert machine.n_threads() == n


@pytest.mark.parametrize("variable", machine.THREAD_VARIABLES)
@pytest.mark.parametrize(("text", "n"), [("3", 3), ("3,2", 3), ("100", 64), ("0", 64), ("-1", 64), ("x", 64), ("", 64)])
def test_variables_bound_the_number(monkeypatch: pytest.MonkeyPatch, variable: str, text: str, n: int) -> None:
    monkeypatch.setenv(variable, text)
    assert machine.n_threads() == n


def test_memory_limit_of_an_enclosing_group_counts(tmp_path: Path) -> None:
    limit(tmp_path / "slice", "memory.max", "3000")
    limit(tmp_path / "slice", "memory.current", "1000")
    assert machine.available_memory() == 2000


def test_peak_memory_grows() -> None:
    before = machine.peak_memory()
    held = bytearray(256 << 20)
    assert machine.peak_memory() >= max(before, len(held))
