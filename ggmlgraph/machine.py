"""What this machine offers: processors this process may use, memory it may take, the ISA level to run, packages.

Used by the runtime for its defaults, by training for what it tells of a run, and by `doctor`, which prints it.
"""

from __future__ import annotations

import os
import platform
import resource
from importlib import metadata
from pathlib import Path

from ggmlgraph.errors import UsageError

CGROUP, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
MEMORY_FILES = (  # of versions 2 and 1: the limit, what is used, and the part of that which can be had back
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK")
MAX_THREADS = 256


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _cgroups(controller: str) -> list[Path]:
    """From this process's control group to the root, of version 2 and of version 1: each may set limits.

    A container may see no folder but that of the root, which is then its own.
    """
    found = []
    for line in _read(OWN_CGROUPS).splitlines():
        controllers, _, group = line.partition(":")[2].partition(":")
        mounts = [CGROUP / controllers, CGROUP / controller] if controller in controllers.split(",") else []
        for mount in dict.fromkeys(mounts) if controllers else [CGROUP]:
            own = Path(group.removeprefix("/"))
            found += [mount / each for each in (own, *own.parents)]
    return found


def _cpu_quota(group: Path) -> tuple[str, str]:
    """Microseconds of processors that a group may take, and of what: digits, if there is a limit."""
    quota, _, period = _read(group / "cpu.max").partition(" ")
    return (quota, period) if quota else (_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _memory_left(group: Path) -> int | None:
    """Bytes that a group may take beyond those it holds; what it holds of files the system gives back when needed."""
    for limit_name, used_name, reclaimable_name in MEMORY_FILES:
        limit, used = _read(group / limit_name), _read(group / used_name)
        if limit.isdigit() and used.isdigit():
            stat = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines() if " " in line)
            return max(0, int(limit) - max(0, int(used) - int(stat.get(reclaimable_name, 0))))
    return None


def n_threads() -> int:
    """Processors in the affinity mask, bounded by the control groups' quotas and by THREAD_VARIABLES."""
    bounds = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MAX_THREADS]
    for quota, period in map(_cpu_quota, _cgroups("cpu")):
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            bounds.append(max(1, int(quota) // int(period)))
    for variable in THREAD_VARIABLES:
        wanted = os.environ.get(variable, "").split(",")[0]  # OpenMP's may be a list, one number per nesting level
        if wanted.isdigit() and int(wanted) > 0:
            bounds.append(int(wanted))
    return min(bounds)


def available_memory() -> int | None:
    """Bytes that can be taken without swapping: MemAvailable, bounded by the cgroups' limits; None if unknown."""
    meminfo = _read(Path("/proc/meminfo"))
    available = [int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemAvailable:")]
    available += [left for left in map(_memory_left, _cgroups("memory")) if left is not None]
    return min(available) if available else None


def memory() -> int | None:
    """The bytes of memory this process holds; None where the system does not say."""
    pages = _read(Path("/proc/self/statm")).split()
    return int(pages[1]) * resource.getpagesize() if len(pages) > 1 else None


def peak_memory() -> int:
    """The most bytes of memory this process has held so far."""
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # may be that of the program that started us


def isa() -> str | None:
    """The level GGMLGRAPH_ISA forces, else None: the best one."""
    return os.environ.get("GGMLGRAPH_ISA") or None


def check_threads(n: int) -> int:
    """Raises UsageError if n is not a number of threads to run with."""
    if not isinstance(n, int):
        raise UsageError(f"--threads {n!r} is not a whole number")
    if not 1 <= n <= MAX_THREADS:
        raise UsageError(f"--threads {n} is not in 1..{MAX_THREADS}")
    return n


def version_of(name: str) -> str | None:
    """Of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """What the machine calls it."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
