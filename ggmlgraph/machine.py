"""What this machine offers: processors this process may use, memory it may take, the ISA level to run.

Used by the runtime for its defaults and by `doctor`, which prints it.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

from ggmlgraph.errors import UsageError

CGROUP = Path("/sys/fs/cgroup")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK")
MAX_THREADS = 256


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _own_cgroup() -> Path:
    """This process's control group (version 2), relative to CGROUP."""
    lines = _read(Path("/proc/self/cgroup")).splitlines()
    return Path(next((line[len("0::/") :] for line in lines if line.startswith("0::/")), ""))


def _cgroups() -> list[Path]:
    """From this process's control group to the root: each may set limits."""
    own = _own_cgroup()
    return [CGROUP / group for group in (own, *own.parents)]


def n_threads() -> int:
    """Processors in the affinity mask, bounded by the control groups' quotas and by THREAD_VARIABLES."""
    bounds = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MAX_THREADS]
    for group in _cgroups():
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
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
    for group in _cgroups():
        limit, used = _read(group / "memory.max"), _read(group / "memory.current")
        if limit.isdigit() and used.isdigit():
            available.append(max(0, int(limit) - int(used)))
    return min(available) if available else None


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
    if not 1 <= n <= MAX_THREADS:
        raise UsageError(f"--threads {n} is not in 1..{MAX_THREADS}")
    return n
