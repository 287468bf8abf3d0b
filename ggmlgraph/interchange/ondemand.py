"""A checkpoint of another program where a graph is wanted: converted once, and kept in the user's cache.

Used by `generate`, `chat`, `eval` and `inspect`, for which a GGUF file or a Hugging Face folder is as good as a graph.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

import ggmlgraph
from ggmlgraph.errors import GGError, UsageError
from ggmlgraph.files.regular import open_regular
from ggmlgraph.interchange import checkpoints, convert
from ggmlgraph.interchange.sources import foreign
from ggmlgraph.training import rundir

GRAPH = b"lmgg"  # what a graph file begins with
MOST_CTX = 512  # as `convert` takes by default


def graph_of(path: Path, tell: Callable[[str], None]) -> Path:
    """The path itself, or the graph made of the checkpoint of another program that is there.

    tell: is told what was made, and where it lies, the first time.
    Raises as `checkpoints.find` and `convert.convert`; GGError if the cache cannot be written.
    """
    if not is_foreign(path):
        return path
    made = _place(path)
    if made.exists():
        return made
    source = checkpoints.find(path)
    ctx = min(source.n_ctx or MOST_CTX, MOST_CTX)
    try:
        made.parent.mkdir(parents=True, exist_ok=True)
        converted = convert.convert(source, made, batch=1, ctx=ctx, tokenizer=source.tokenizer)
    except OSError as error:
        raise GGError(f"{made.parent}: {error.strerror}: XDG_CACHE_HOME names another place") from None
    for old in made.parent.glob(f"{made.name.partition('-')[0]}-*.bin"):
        if old != made:  # of the same checkpoint, as it was
            old.unlink(missing_ok=True)
    for note in source.notes:
        tell(note)
    if source.tokenizer is None:
        tell(f"{path} has no tokenizer ({source.no_tokenizer}): `convert --tokenizer` takes another")
    tell(f"converted {path}, {source.kind} of a {source.architecture}; kept in {made}")
    if converted.check is not None and not converted.check.passed:
        tell("WARNING: it reads plain English badly: the weights look permuted, or the tokenizer is not this model's")
    return made


def is_foreign(path: Path) -> bool:
    """Whether there is a checkpoint of another program, and no graph, run or checkpoint of ours."""
    if os.path.isdir(path):  # noqa: PTH112 (which takes any path)
        if rundir.is_checkpoint(path) or rundir.graph_path(path).exists():
            return False
        return any((path / name).exists() for name in (*checkpoints.FOLDERS, foreign.ADAPTER))
    file, _ = open_regular(path)
    with file:
        if file.read(len(GRAPH)) == GRAPH:
            return False
    try:
        return bool(checkpoints.kind(path))
    except UsageError:
        return False


def _place(path: Path) -> Path:
    """Where the graph of a checkpoint lies, as long as no file of it changes."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    where = blake2b(os.fsencode(path.resolve()), digest_size=8).hexdigest()
    stamp = "\n".join([ggmlgraph.__version__, *_files(path)])
    return Path(home) / "ggmlgraph" / f"{where}-{blake2b(stamp.encode(), digest_size=8).hexdigest()}.bin"


def _files(path: Path) -> Iterator[str]:
    """Name, size and time of each file that may count."""
    for file in sorted(path.iterdir() if path.is_dir() else path.parent.iterdir()):
        status = file.stat() if file.is_file() else None
        if status is not None:
            yield f"{file.name!r} {status.st_size} {status.st_mtime_ns}"
