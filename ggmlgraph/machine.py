"""What this machine offers: processors this process may use, memory it may take, the ISA level to run.

Used by the runtime for its defaults and by `doctor`, which prints it.
"""

from __future__ import annotations

import os
from pathlib import Path

from ggmlgraph.errors import UsageError

CGROUP = Path("/sys/fs/cgroup")
MAX_THREADS = 256


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def n_threads() -> int:
    """Processors in the affinity mask, bounded by the cgroup's quota and by OMP_NUM_THREADS."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        n = min(n, max(1, int(quota[0]) // int(quota[1])))
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        n = min(n, int(wanted))
    return min(n, MAX_THREADS)


def available_memory() -> int | None:
    """Bytes that can be taken without swapping: MemAvailable, bounded by the cgroup's limit; None if unknown."""
    meminfo = _read(Path("/proc/meminfo"))
    available = [int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemAvailable:")]
    limit, used = _read(CGROUP / "memory.max"), _read(CGROUP / "memory.current")
    if limit.isdigit() and used.isdigit():
        available.append(max(0, int(limit) - int(used)))
    return min(available) if available else None


def isa() -> str | None:
    """The level GGMLGRAPH_ISA forces, else None: the best one."""
    return os.environ.get("GGMLGRAPH_ISA") or None


def check_threads(n: int) -> int:
    """Raises UsageError if n is not a number of threads to run with."""
    if not 1 <= n <= MAX_THREADS:
        raise UsageError(f"--threads {n} is not in 1..{MAX_THREADS}")
    return n
