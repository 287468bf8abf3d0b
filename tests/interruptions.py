"""Runs that are killed, stopped, or refused by the disk, at every call or at random moments, and then gone on with.

A program, since it forks, and since the calls of libc are intercepted by a library that must be loaded before Python:

    python tests/interruptions.py FOLDER calls EVERY    each EVERY-th call of two saves, each way it can fail
    python tests/interruptions.py FOLDER kills N        N times at random moments, one after the other
    python tests/interruptions.py FOLDER stops N        the same by signals at which a run saves and ends
    python tests/interruptions.py FOLDER flips N        N checkpoints with one bit changed

Each run is that of the command line, in a process forked from this one. Prints what was done, and what went wrong, a
line each; ends with 1 if anything did.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ggmlgraph as gg
from ggmlgraph.cli import main
from ggmlgraph.errors import CheckpointError
from ggmlgraph.execution import checkpoint
from ggmlgraph.models import llama
from ggmlgraph.tokenizers.plain import BytesTokenizer
from ggmlgraph.training import rundir

# Counts the calls that name, or hold open, something in $DISK, and lets the one that is asked for fail.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KILL = -1, TORN = -2, SHORT = -3 };

static int n_calls, failing, how, lasts;
static char kinds[1 << 16];

void shim_arm(int call, int kind, int on) { failing = call; how = kind; lasts = on; n_calls = 0; kinds[0] = 0; }
int shim_count(void) { return n_calls; }
const char *shim_kinds(void) { return kinds; }

static int fails(const char *call, const char *path)
{
    const char *disk = getenv("DISK");
    if (!disk || !path || strncmp(path, disk, strlen(disk))) return 0;
    int n = __atomic_add_fetch(&n_calls, 1, __ATOMIC_SEQ_CST);
    if (!failing && strlen(kinds) + strlen(call) + 2 < sizeof kinds) strcat(strcat(kinds, call), " ");
    if (!failing || (lasts ? n < failing : n != failing)) return 0;
    if (how == KILL) kill(getpid(), SIGKILL);
    if (how > 0) errno = how;
    return how;
}

static int fails_at(const char *call, int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    path[n < 0 ? 0 : n] = 0;
    return fails(call, path);
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define PATH(name, types, args, path) int name types { REAL(name); return fails(#name, path) > 0 ? -1 : real args; }
#define FD(name, types, args, fd) int name types { REAL(name); return fails_at(#name, fd) > 0 ? -1 : real args; }

ssize_t write(int fd, const void *data, size_t n)
{
    REAL(write);
    int kind = fails_at("write", fd);
    if (kind > 0) return -1;
    ssize_t done = real(fd, data, kind < -1 ? n / 2 : n);
    if (kind == TORN) kill(getpid(), SIGKILL);
    return done;
}

static int opened(const char *call, int dir, const char *path, int flags, mode_t mode)
{
    char whole[8192], link[64], at[4096];
    if (dir != AT_FDCWD && path[0] != '/') {
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        ssize_t n = readlink(link, at, sizeof at - 1);
        at[n < 0 ? 0 : n] = 0;
        snprintf(whole, sizeof whole, "%s/%s", at, path);
    } else snprintf(whole, sizeof whole, "%s", path);
    if (fails(call, whole) > 0) return -1;
    int (*real)(int, const char *, int, ...) = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, "openat64");
    return real(dir, path, flags, mode);
}

#define MODE(flags) mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list l; va_start(l, flags); mode = va_arg(l, mode_t); va_end(l); }
int open(const char *path, int flags, ...) { MODE(flags) return opened("open", AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened("open", AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE(flags) return opened("open", dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE(flags) return opened("open", dir, path, flags, mode); }
PATH(mkdir, (const char *path, mode_t mode), (path, mode), path)
PATH(rmdir, (const char *path), (path), path)
PATH(unlink, (const char *path), (path), path)
PATH(symlink, (const char *to, const char *path), (to, path), path)
PATH(rename, (const char *from, const char *to), (from, to), to)
FD(unlinkat, (int dir, const char *path, int flags), (dir, path, flags), dir)
FD(fsync, (int fd), (fd), fd)
FD(ftruncate64, (int fd, off64_t n), (fd, n), fd)
FD(flock, (int fd, int what), (fd, what), fd)
int close(int fd)
{
    REAL(close);
    int flags = fcntl(fd, F_GETFL); /* only what was written can fail to be */
    int kind = flags > 0 && (flags & O_ACCMODE) ? fails_at("close", fd) : 0, done = real(fd);
    return kind > 0 ? -1 : done;
}
"""

KILL, TORN, SHORT = -1, -2, -3
EIO, ENOSPC = 5, 28
# How a call can go wrong, and whether all that follow it do too.
WAYS = {
    "killed before it": (KILL, False), "killed in the middle of it": (TORN, False), "a short write": (SHORT, False),
    "EIO": (EIO, False), "EIO from then on": (EIO, True),
    "ENOSPC": (ENOSPC, False), "ENOSPC from then on": (ENOSPC, True),
}  # fmt: skip
WRITES = ("killed in the middle of it", "a short write")  # ways of write alone
ENDS = (0, 1, -signal.SIGKILL)
FIRST, LAST, EVERY = 8, 16, 4  # steps: where the interrupted run begins and ends, and between its saves


class Runs:
    """Runs of one graph and text, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.graph = folder, folder / "g.bin"
        folder.mkdir(parents=True, exist_ok=True)
        config = llama.Config(n_embd=8, n_head=2, n_layer=1, n_ff=8, n_vocab=256)
        gg.trace(llama.loss, config, batch=2, ctx=8).save(self.graph, tokenizer=BytesTokenizer().to_bytes())
        (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)

    def train(self, run: Path, steps: int, save_every: int = EVERY) -> int:
        """One sitting; its exit status."""
        return main.run(["train", str(self.graph), "--data", str(self.folder / "text.txt"), "--steps", str(steps),
                         "--save-every", str(save_every), "--eval-every", str(save_every), "--predict", "0",
                         "--schedule", "constant", "--warmup", "0", "--keep", "2", "--threads", "1", "-o", str(run),
                         "--resume", "auto"])  # fmt: skip

    def difference(self, run: Path, whole: Path, step: int) -> Iterator[str]:
        """What of a run that is done is not as it is in one that was never interrupted."""
        for name in checkpoint.FILES:
            paths = [rundir.step_directory(each, step) / name for each in (run, whole)]
            if not paths[0].exists() or paths[0].read_bytes() != paths[1].read_bytes():
                yield f"{name} is not the same"
        if _metrics(run) != _metrics(whole):
            yield "metrics.jsonl is not the same"
        if left := [path.name for path in run.rglob("*.tmp")]:
            yield f"left behind: {left}"
        kept = [[path.name for path in rundir.steps(each)] for each in (run, whole)]
        if kept[0] != kept[1]:
            yield f"checkpoints {kept[0]} instead of {kept[1]}"


def _metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("tokens_per_s", "elapsed_s", "memory")} for line in lines]


def forked(work: Callable[[], int], log: Path) -> int:
    """Begin work in a process of its own, whose output goes to a file; its id."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(out, 1)
            os.dup2(out, 2)
            status = work()
            sys.stdout.flush()
        finally:
            os._exit(status)
    return pid


def status_of(pid: int) -> int:
    """Of a process, when it ends; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---------------------------------------------------------------- at every call


def calls(runs: Runs, every: int) -> Iterator[str]:
    """Each `every`-th call, in each way."""
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    shim.shim_kinds.restype = ctypes.c_char_p
    disk, log = Path(os.environ["DISK"]), runs.folder / "log"
    base, run, whole = runs.folder / "base", disk / "run", runs.folder / "whole"
    runs.train(base, FIRST)
    shutil.copytree(base, run, symlinks=True)
    shim.shim_arm(0, 0, 0)
    runs.train(run, LAST)
    kinds = shim.shim_kinds().decode().split()
    shutil.move(run, whole)
    n = 0
    for call in range(1, len(kinds) + 1):
        for number, (way, (kind, lasts)) in enumerate(WAYS.items()):
            if (call + number) % every or (way in WRITES and kinds[call - 1] != "write"):
                continue

            def work(call: int = call, kind: int = kind, lasts: bool = lasts) -> int:
                shim.shim_arm(call, kind, lasts)
                return runs.train(run, LAST)

            n += 1
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(base, run, symlinks=True)
            status = status_of(forked(work, log))
            where = f"call {call} ({kinds[call - 1]}), {way}"
            if status not in ENDS:  # threads run beside each other: the number of a call may be that of another
                yield f"{where}: ended with {status}: {log.read_text()[-300:]}"
            if "Traceback" in log.read_text():
                yield f"{where}: {log.read_text()[-1000:]}"
            if (newest := rundir.latest(run)[0]) is None or rundir.step_of(newest) < FIRST - EVERY:
                yield f"{where}: goes on from {newest}"
            for path in rundir.steps(run)[:-1]:
                try:
                    checkpoint.verify(path)
                except CheckpointError as error:
                    yield f"{where}: {error}"
            if (status := status_of(forked(lambda: runs.train(run, LAST), log))) != 0:
                yield f"{where}: went on and ended with {status}: {log.read_text()[-300:]}"
            else:
                yield from (
                    f"{where}: {what}" for what in runs.difference(run, whole, LAST) if "checkpoints" not in what
                )
    print(f"{n} faults at {len(kinds)} calls: " + ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds)))


# ---------------------------------------------------------------- at random moments


def interrupted(runs: Runs, n: int, number: signal.Signals) -> Iterator[str]:
    """A run that is sent a signal n times, at random moments, and gone on with."""
    steps, log, chance = 16 * n, runs.folder / "log", random.Random(number)
    run, whole = runs.folder / "run", runs.folder / "whole"
    status_of(forked(lambda: runs.train(whole, steps), log))
    most = 0
    for sitting in range(n):
        pid = forked(lambda: runs.train(run, steps), log)
        wait_for_lines(pid, run / "metrics.jsonl", chance.randrange(24))
        time.sleep(chance.uniform(0, 0.02))
        os.kill(pid, number)
        status = status_of(pid)
        if status not in (-number, 0):
            yield f"sitting {sitting}: ended with {status}: {log.read_text()[-300:]}"
        most = max(most, n_bytes(run))
    if (status := status_of(forked(lambda: runs.train(run, steps), log))) != 0:
        yield f"the last sitting ended with {status}: {log.read_text()[-300:]}"
    yield from runs.difference(run, whole, steps)
    allowed = 2 * n_bytes(whole)  # one more checkpoint, and events of each sitting
    if most > allowed + 2000 * n:
        yield f"{most} bytes on the disk, {n_bytes(whole)} without interruptions"
    print(f"{n} times {number.name} in {steps} steps; at most {most} bytes on the disk, {n_bytes(whole)} without")


def n_bytes(folder: Path) -> int:
    """Of the files in it."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def wait_for_lines(pid: int, path: Path, n: int) -> None:
    """Until a process has written so many more, or is about to end."""
    known = path.read_bytes().count(b"\n") if path.exists() else 0
    until = time.monotonic() + 5
    while time.monotonic() < until and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.001)
        if path.exists() and path.read_bytes().count(b"\n") >= known + n:
            return


# ---------------------------------------------------------------- bits


def flips(runs: Runs, n: int) -> Iterator[str]:
    """Checkpoints in which one bit has changed, each of which must be noticed."""
    runs.train(runs.folder / "run", EVERY)
    path, chance = rundir.step_directory(runs.folder / "run", EVERY), random.Random(0)
    files = [path / name for name in (*checkpoint.FILES, checkpoint.STATE)]
    sizes = [file.stat().st_size for file in files]
    for k in range(n):
        file = files[k % len(files)] if k % 2 else chance.choices(files, sizes)[0]  # the small ones as often
        at, bit = chance.randrange(file.stat().st_size), 1 << chance.randrange(8)
        with file.open("r+b") as changed:
            changed.seek(at)
            byte = changed.read(1)[0]
            changed.seek(at)
            changed.write(bytes([byte ^ bit]))
            changed.flush()
            try:
                checkpoint.verify(path)
                yield f"{file.name}, byte {at}, bit {bit}: not noticed"
            except CheckpointError:
                pass
            changed.seek(at)
            changed.write(bytes([byte]))
    checkpoint.verify(path)
    print(f"{n} bits of {sum(sizes)} bytes")


KINDS: dict[str, Callable[[Runs, int], Iterator[str]]] = {
    "calls": calls,
    "kills": lambda runs, n: interrupted(runs, n, signal.SIGKILL),
    "stops": lambda runs, n: interrupted(runs, n, signal.SIGTERM),
    "flips": flips,
}


def shim(folder: Path) -> Path:
    """The library, made of SHIM. Raises FileNotFoundError where there is no C compiler."""
    (folder / "shim.c").write_text(SHIM)
    command = ["cc", "-shared", "-fPIC", "-D_FORTIFY_SOURCE=0", "-o", folder / "shim.so", folder / "shim.c", "-ldl"]
    subprocess.run(command, check=True)
    return folder / "shim.so"


if __name__ == "__main__":
    place, kind, amount = Path(sys.argv[1]).resolve(), sys.argv[2], int(sys.argv[3])
    if kind == "calls" and "LD_PRELOAD" not in os.environ:
        place.mkdir(parents=True, exist_ok=True)
        (place / "disk").mkdir()
        environment = {**os.environ, "LD_PRELOAD": str(shim(place)), "DISK": str(place / "disk")}
        os.execve(sys.executable, [sys.executable, "-P", __file__, *sys.argv[1:]], environment)
    wrong = [print(f"WRONG {line}") for line in KINDS[kind](Runs(place), amount)]
    sys.exit(1 if wrong else 0)
