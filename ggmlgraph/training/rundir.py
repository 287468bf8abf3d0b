"""The directory of a training run: what lies in it, and the lock that keeps a second run out.

    run/graph.bin       the graph that is trained, so that `generate run/` needs nothing else
    run/tokenizer.bin   the tokenizer, only if the graph brought none
    run/config.json     the options, resolved
    run/metrics.jsonl   one line a step (metrics.py)
    run/events.jsonl    one line for whatever else happened (events.py)
    run/step_NNNNNN/    checkpoints (execution/checkpoint.py)
    run/best            a link to the one with the least validation loss
    run/tokens/         the training text as token ids (data/store.py)

Used by the training command; everyone else opens a run through run.py.
"""

from __future__ import annotations

import fcntl
import filecmp
import json
import os
import shutil
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import msgspec

from ggmlgraph.durable import replacing, sync
from ggmlgraph.errors import CheckpointError, FormatError, GGError, UsageError
from ggmlgraph.execution import checkpoint
from ggmlgraph.files.regular import read_regular
from ggmlgraph.training.config import TrainConfig

MAX_CONFIG_NBYTES, MAX_TOKENIZER_NBYTES = 1 << 20, 1 << 30
MARKS = {"steps", "lr"}  # by which the options of a run are known


def graph_path(run: Path) -> Path:
    """The run's graph file."""
    return run / "graph.bin"


def tokenizer_path(run: Path) -> Path:
    """The run's tokenizer, there only if the graph brought none."""
    return run / "tokenizer.bin"


def metrics_path(run: Path) -> Path:
    """A line a step."""
    return run / "metrics.jsonl"


class RunDirectory:
    """A run directory, created if need be and locked until it is left."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError if the path is not a directory, GGError if another process trains in it."""
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is not a directory")
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._unlock: weakref.finalize[..., RunDirectory] | None = None
        self.lock()

    def lock(self) -> None:
        """Keep others out until `close`. Raises GGError if another process, or another trainer, is in."""
        if self._unlock and self._unlock.alive:
            return
        lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise GGError(f"{self.path} is in use: another process is training in it") from None
        self._unlock = weakref.finalize(self, os.close, lock)

    def close(self) -> None:
        """Let others in."""
        if self._unlock:
            self._unlock()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def metrics_path(self) -> Path:
        return metrics_path(self.path)

    @property
    def events_path(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def tokens_path(self) -> Path:
        return self.path / "tokens"

    def check_new(self) -> None:
        """Raises UsageError if a run began here already: it must not be written over."""
        if self.metrics_path.exists() or steps(self.path):
            raise UsageError(f"{self.path} already holds a run: go on with --resume auto, or choose another -o")
        read_config(self.path)  # one of another program is not written over

    def check_next(self, step: int) -> None:
        """Raises UsageError if there are checkpoints later than `step`, which going on from there would write again."""
        later = [path for path in steps(self.path) if step_of(path) > step]
        if later:
            raise UsageError(f"{later[0]} is later than step {step}: choose another -o to go on from there")

    def put_graph(self, source: Path) -> None:
        """Copy the graph in: a copy, since a link would change with what it links to. A resumed run has it already.

        Raises UsageError if there is another: what the run's checkpoints belong to must stay.
        """
        to = graph_path(self.path)
        if not to.exists():
            with replacing(to) as temporary:
                shutil.copyfile(source, temporary)
        elif not (to.samefile(source) or filecmp.cmp(to, source, shallow=False)):
            raise UsageError(f"{to} is another graph than {source}: train that one, or choose another -o")

    def put_tokenizer(self, data: bytes) -> None:
        """Write the tokenizer. Raises UsageError if there is another."""
        to = tokenizer_path(self.path)
        if to.exists() and read_regular(to, MAX_TOKENIZER_NBYTES) != data:
            raise UsageError(f"{to} is another tokenizer than that of the run: choose another -o")
        _replace(to, data)

    def put_config(self, config: TrainConfig) -> None:
        """Write the options; the files they name by absolute paths, so that a run can go on from anywhere."""
        text = json.dumps(msgspec.to_builtins(config.absolute()), indent=2)  # names need not be UTF-8: escaped
        _replace(self.config_path, text.encode() + b"\n")


def _replace(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read_config(run: Path) -> TrainConfig | None:
    """The options a run was started with; None if it has none. Raises FormatError, also for another program's file."""
    path = run / "config.json"
    if not path.exists():
        return None
    try:
        content = json.loads(read_regular(path, MAX_CONFIG_NBYTES))
        if not isinstance(content, dict) or not content.keys() >= MARKS:
            raise FormatError(f"{path} is not of a training run")
        if "betas" in content:  # as runs said it that knew no optimiser but AdamW
            beta1, beta2 = content.pop("betas")
            content["optimizer"] = {"name": "adamw", "beta1": beta1, "beta2": beta2}
        return msgspec.convert(content, TrainConfig)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise FormatError(f"{path}: {error}") from None


# ---------------------------------------------------------------- the checkpoints of a run


def step_directory(run: Path, step: int) -> Path:
    """run/step_NNNNNN."""
    return run / f"step_{step:06d}"


def step_of(directory: Path) -> int:
    """NNNNNN of step_NNNNNN."""
    return int(directory.name.removeprefix("step_"))


def steps(run: Path) -> list[Path]:
    """The run's checkpoint directories, newest first; whether they are whole is not looked at."""
    found = [path for path in run.glob("step_*") if path.name.removeprefix("step_").isdecimal() and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def latest(run: Path, names: Iterable[str] = checkpoint.FILES) -> tuple[Path | None, list[CheckpointError]]:
    """The newest whole checkpoint, and why newer ones were skipped.

    None only if there are no checkpoints. Raises CheckpointError if there are, but none is whole: to begin again
    silently would lose the run.
    """
    skipped: list[CheckpointError] = []
    for path in steps(run):
        try:
            checkpoint.verify(path, names)
            return path, skipped
        except CheckpointError as error:
            skipped.append(error)
    if skipped:
        raise CheckpointError(f"{run} has no whole checkpoint: {skipped[0]}")
    return None, []


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that its step can be saved again."""
    for i in range(1000):
        aside = path.with_name(f"{path.name}.damaged{i or ''}")
        if not aside.exists():
            path.rename(aside)
            return aside
    raise CheckpointError(f"{path}: too many damaged checkpoints beside it")


def put_name(run: Path, name: str, step: int) -> None:
    """Make `run/NAME` lead to a checkpoint, which is then kept; to none if that is not there.

    A link; where the file system has none, or is full, there is no name.
    """
    target, link, temporary = step_directory(run, step), run / name, run / f".{name}.tmp"
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
        if not target.exists():
            link.unlink(missing_ok=True)
        elif not (link.is_symlink() and link.readlink() == Path(target.name)):
            temporary.symlink_to(target.name)
            temporary.replace(link)
            sync(run)


def prune(run: Path, keep: int, due_every: int, keep_every: int) -> None:
    """Delete checkpoints, and what interrupted saves left; call after a save succeeded.

    There stay: the newest; of those whose steps are multiples of `due_every`, or of all if that is 0, the `keep`
    newest, and multiples of `keep_every` if that is not 0; and those that have a name.
    """
    found = steps(run)
    due = [path for path in found if not due_every or step_of(path) % due_every == 0]
    lasting = [path for path in found if keep_every and step_of(path) % keep_every == 0]
    named = [run / path.readlink() for path in run.iterdir() if path.is_symlink()]
    kept = {*found[:1], *due[:keep], *lasting, *named}
    for path in found:
        if path not in kept:
            delete(path)
    for path in run.glob(".step_*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def delete(path: Path) -> None:
    """Delete a checkpoint: if that is interrupted, nothing half is left under its name."""
    gone = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(OSError):
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def is_checkpoint(path: Path) -> bool:
    """Whether a path is that of a checkpoint, whole or not, and not of a run directory."""
    return (path / checkpoint.STATE).exists() or path.name.startswith("step_")


def find_checkpoint(path: Path, names: Iterable[str] = checkpoint.FILES) -> tuple[Path, list[CheckpointError]]:
    """The checkpoint at a path, or the latest whole one of a run directory, and why newer ones were skipped.

    Raises CheckpointError.
    """
    if is_checkpoint(path):
        return path, []
    found, skipped = latest(path, names)
    if found is None:
        raise CheckpointError(f"{path} has no checkpoint yet")
    return found, skipped
