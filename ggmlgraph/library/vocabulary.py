"""`gg.tokenizer`: text to ids and back, out of whatever has a tokenizer."""

from __future__ import annotations

import os
from pathlib import Path

from ggmlgraph.errors import DataError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.interchange.tokenizer import load_tokenizer
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.training import rundir
from ggmlgraph.training.run import Run

GRAPH = b"lmgg"  # what a graph file begins with


def tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a run, a checkpoint or a graph file; or in a file or folder of another program's.

    `encode(text)` gives int32 ids, `decode(ids)` text; `n_vocab`, `bos_id`, `end_ids`, `specials` say what it has.
    Raises GGError if there is none, FormatError if it is malformed.
    """
    path = Path(path)
    is_run = path.is_dir() and (rundir.is_checkpoint(path) or rundir.graph_path(path).exists())
    if not is_run and not _is_graph(path):
        return load_tokenizer(path)
    run = Run.open(path)
    with Runtime(run.graph, mapped=True, roles=run.roles) as runtime:
        found = run.tokenizer(runtime.tokenizer_bytes())
    if found is None:
        raise DataError(f"{path} has no tokenizer")
    return found


def _is_graph(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(GRAPH)) == GRAPH
