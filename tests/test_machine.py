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
    in_groups(tmp_path, monkeypatch, "0::/slice/job")
    for variable in machine.THREAD_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """What /proc/self/cgroup says."""
    (tmp_path / "own").write_text("".join(f"{line}\n" for line in lines))
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")


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


def test_memory_that_holds_files_can_be_had_back(tmp_path: Path) -> None:
    limit(tmp_path / "slice", "memory.max", "3000")
    limit(tmp_path / "slice", "memory.current", "2900")
    limit(tmp_path / "slice", "memory.stat", "anon 400\ninactive_file 2500\nactive_file 0")
    assert machine.available_memory() == 2600


VERSION_1 = ("12:cpu,cpuacct:/slice/job", "7:memory:/slice/job", "1:name=systemd:/", "0::/elsewhere")


@pytest.mark.parametrize(("quota", "n"), [("-1", 64), ("400000", 4), ("50000", 1), ("", 64)])
@pytest.mark.parametrize("group", [".", "slice", "slice/job"])
@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_quota_of_version_1_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mount: str, group: str, quota: str, n: int
) -> None:
    in_groups(tmp_path, monkeypatch, *VERSION_1)
    limit(tmp_path / mount / group, "cpu.cfs_quota_us", quota)
    limit(tmp_path / mount / group, "cpu.cfs_period_us", "100000")
    assert machine.n_threads() == n


@pytest.mark.parametrize("group", [".", "slice", "slice/job"])
def test_memory_limit_of_version_1_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str) -> None:
    in_groups(tmp_path, monkeypatch, *VERSION_1)
    limit(tmp_path / "memory" / group, "memory.limit_in_bytes", "3000")
    limit(tmp_path / "memory" / group, "memory.usage_in_bytes", "1900")
    limit(tmp_path / "memory" / group, "memory.stat", "inactive_file 1\ntotal_inactive_file 900")
    assert machine.available_memory() == 2000


def test_no_limit_of_version_1_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = machine.available_memory()
    in_groups(tmp_path, monkeypatch, *VERSION_1)
    limit(tmp_path / "memory", "memory.limit_in_bytes", "9223372036854771712")
    limit(tmp_path / "memory", "memory.usage_in_bytes", "1000")
    found = machine.available_memory()
    assert free is not None and found is not None
    assert found > free // 2


def test_limits_of_other_groups_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_groups(tmp_path, monkeypatch, "12:cpu,cpuacct:/slice/job", "7:memory:/slice/job")
    limit(tmp_path / "memory" / "other", "memory.limit_in_bytes", "3000")
    limit(tmp_path / "cpuset" / "slice" / "job", "cpu.cfs_quota_us", "100000")
    limit(tmp_path / "cpuset" / "slice" / "job", "cpu.cfs_period_us", "100000")
    assert machine.n_threads() == 64


@pytest.mark.parametrize("line", ["", "nonsense", "0::", "::", "1:memory:/.."])
def test_groups_that_cannot_be_read_set_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    in_groups(tmp_path, monkeypatch, line)
    assert machine.n_threads() == 64


def test_peak_memory_grows() -> None:
    before = machine.peak_memory()
    held = bytearray(256 << 20)
    assert machine.peak_memory() >= max(before, len(held))
