"""Disks that are full or fail: what is on them afterwards is whole, the file is named, and the run goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ggmlgraph as gg
from ggmlgraph.cli import main
from ggmlgraph.execution import checkpoint
from ggmlgraph.models import llama
from ggmlgraph.tokenizers.plain import BytesTokenizer
from ggmlgraph.training.rundir import steps

COMMAND = [sys.executable, "-P", "-c", "from ggmlgraph.cli.main import main; main()"]
STEPS, EVERY, LAST = 40, 5, 10  # LAST: of the checkpoint after which the disk takes no more


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "g.bin"
    config = llama.Config(n_embd=16, n_head=2, n_layer=1, n_ff=24, n_vocab=256)
    gg.trace(llama.loss, config, batch=2, ctx=8).save(path, tokenizer=BytesTokenizer().to_bytes())
    path.with_name("text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    return path


def options(graph: Path, run: Path) -> list[str]:
    text = str(graph.with_name("text.txt"))
    return ["train", str(graph), "--data", text, "--steps", str(STEPS), "--save-every", str(EVERY), "--eval-every", "0",
            "--predict", "0", "--threads", "1", "-o", str(run)]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main.run(options(graph, run)) == 0
    return run


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("tokens_per_s", "elapsed_s", "memory")} for line in lines]


def assert_whole(run: Path) -> None:
    """Nothing is there but whole files, and the last checkpoint that could be saved."""
    assert steps(run)[0].name == f"step_{LAST:06d}"
    for path in steps(run):
        checkpoint.verify(path)
    assert [path.name for path in run.rglob("*.tmp")] == []


def assert_goes_on(graph: Path, run: Path, uninterrupted: Path) -> None:
    assert main.run([*options(graph, run), "--resume", "auto"]) == 0
    last = f"step_{STEPS:06d}/{checkpoint.WEIGHTS}"
    assert (run / last).read_bytes() == (uninterrupted / last).read_bytes()
    assert metrics(run) == metrics(uninterrupted)


# ---------------------------------------------------------------- a disk that fails

# Calls of libc that fail for files below $DISK once $DISK_FAILS_FROM is there, as those of a broken disk do.
FAILING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(const char *call, const char *path)
{
    if (strcmp(getenv("DISK_CALL"), call) || access(getenv("DISK_FAILS_FROM"), F_OK)) return 0;
    if (!strstr(path, getenv("DISK"))) return 0;
    errno = EIO;
    return 1;
}

static int fails_at(const char *call, int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    path[n < 0 ? 0 : n] = 0;
    return fails(call, path);
}

ssize_t write(int fd, const void *data, size_t n)
{
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    return fails_at("write", fd) ? -1 : real(fd, data, n);
}

int fsync(int fd)
{
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    return fails_at("fsync", fd) ? -1 : real(fd);
}

int rename(const char *from, const char *to)
{
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    return fails("rename", to) ? -1 : real(from, to);
}
"""


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library to preload."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make failing calls with")
    folder = tmp_path_factory.mktemp("failing")
    (folder / "failing.c").write_text(FAILING)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", folder / "failing.so", folder / "failing.c", "-ldl"], check=True
    )
    return folder / "failing.so"


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_disk_that_fails_stops_the_run_which_goes_on_when_it_is_mended(
    graph: Path, uninterrupted: Path, failing: Path, tmp_path: Path, call: str
) -> None:
    run = tmp_path / "disk" / "run"
    environment = {
        **os.environ, "LD_PRELOAD": str(failing), "DISK": str(run.parent), "DISK_CALL": call,
        "DISK_FAILS_FROM": str(run / f"step_{LAST:06d}" / checkpoint.STATE),
    }  # fmt: skip
    done = subprocess.run([*COMMAND, *options(graph, run)], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "3 checkpoints in a row could not be saved" in done.stderr
    assert str(run) in done.stderr
    assert "nput/output error" in done.stderr
    assert_whole(run)
    assert_goes_on(graph, run, uninterrupted)


# ---------------------------------------------------------------- a disk that is full


def test_a_limit_on_files_stops_the_run_which_goes_on_without(graph: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """A quota, say: the optimiser's file does not fit, the weights' does."""
    run = tmp_path / "run"
    nbytes = (uninterrupted / f"step_{STEPS:06d}" / checkpoint.OPTIMIZER).stat().st_size - 1
    limited = ["bash", "-c", f'ulimit -f {nbytes // 1024}; exec "$@"', "bash", *COMMAND, *options(graph, run)]
    done = subprocess.run(limited, capture_output=True, text=True)
    assert done.returncode == 1
    assert "3 checkpoints in a row could not be saved" in done.stderr
    assert f"{run}/step_000015: cannot be written" in done.stderr
    assert steps(run) == []
    assert [path.name for path in run.rglob("*.tmp")] == []
    assert_goes_on(graph, run, uninterrupted)


FULL = r"""
set -e
mount -t tmpfs -o size=$SIZE disk "$DISK"
set +e
"$@" 2> "$OUT/stderr"
echo $? > "$OUT/status"
set -e
cp -r "$DISK/run" "$OUT/full"
mount -o remount,size=100m "$DISK"
"$@" --resume auto
cp -r "$DISK/run" "$OUT/run"
"""


def can_mount() -> bool:
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "disk", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="may not mount a small file system")
def test_a_full_file_system_stops_the_run_which_goes_on_when_there_is_room(
    graph: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    one = sum(path.stat().st_size for path in (uninterrupted / f"step_{STEPS:06d}").iterdir())
    rest = sum(path.stat().st_size for path in uninterrupted.rglob("*") if "step_" not in str(path))
    size = rest + int(2.6 * one)  # room for two checkpoints, but not for a third
    command = ["unshare", "-m", "bash", "-c", FULL, "bash", *COMMAND, *options(graph, disk / "run")]
    environment = {**os.environ, "DISK": str(disk), "OUT": str(out), "SIZE": str(size)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert (out / "status").read_text() == "1\n"
    errors = (out / "stderr").read_text()
    assert "3 checkpoints in a row could not be saved" in errors
    assert "No space left on device" in errors
    assert f"{disk}/run" in errors
    assert_whole(out / "full")
    last = f"step_{STEPS:06d}/{checkpoint.WEIGHTS}"
    assert (out / "run" / last).read_bytes() == (uninterrupted / last).read_bytes()
    assert metrics(out / "run") == metrics(uninterrupted)


SMALL = r"""
mount -t tmpfs -o size=16k disk "$DISK" || exit 99
exec "$@"
"""


@pytest.mark.skipif(not can_mount(), reason="may not mount a small file system")
@pytest.mark.parametrize("command", ["export", "rewrite", "convert", "export-gguf", "export-hf", "tokenizer", "train"])
def test_every_command_names_the_file_that_a_full_disk_does_not_take(command: str, graph: Path, tmp_path: Path) -> None:
    disk, text = tmp_path / "disk", tmp_path / "text.txt"
    disk.mkdir()
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    gguf = tmp_path / "m.gguf"
    if command == "convert":
        assert main.run(["export-gguf", str(graph), "-o", str(gguf)]) == 0
    words = {
        "export": ["export", "llama", "n_embd=64", "n_head=2", "n_layer=1", "-o", f"{disk}/file"],
        "rewrite": ["rewrite", str(graph), f"{disk}/file", "--dialect", "v1"],
        "convert": ["convert", str(gguf), "-o", f"{disk}/file"],
        "export-gguf": ["export-gguf", str(graph), "-o", f"{disk}/file"],
        "export-hf": ["export-hf", str(graph), "-o", f"{disk}/file"],
        "tokenizer": ["tokenizer", "train", "builtin:pydoc", "--n-vocab", "2000", "-o", f"{disk}/file"],
        "train": ["train", str(graph), "--data", "builtin:pydoc", "-o", f"{disk}/file"],
    }[command]
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", SMALL, "bash", *COMMAND, *words],
        env={**os.environ, "DISK": str(disk)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{disk}/file" in done.stderr
    assert "No space left on device" in done.stderr
