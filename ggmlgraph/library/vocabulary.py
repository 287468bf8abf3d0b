"""Text to ids and back: `gg.tokenizer`, out of whatever has one, and the one that a run is trained with."""

from __future__ import annotations

import os
from pathlib import Path

from ggmlgraph.errors import DataError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.interchange.tokenizer import load_tokenizer
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tokenizers.leaf import tokenizer_from_bytes
from ggmlgraph.tokenizers.plain import BytesTokenizer
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


def chosen(runtime: Runtime, given: Tokenizer | str | os.PathLike[str] | None, beside: Path | None) -> Tokenizer:
    """Of a run: the one in its graph, else the one given, else what an earlier run kept in the file `beside`.

    Raises DataError if they do not fit the model or each other.
    """
    n_vocab, inside = runtime.n_vocab, runtime.tokenizer_bytes()
    if given is not None:
        name = "the tokenizer" if isinstance(given, Tokenizer) else str(given)
        found = given if isinstance(given, Tokenizer) else load_tokenizer(Path(given))
        if inside is not None and found.to_bytes() != tokenizer_from_bytes(inside).to_bytes():
            raise DataError(f"{name}: the graph has another tokenizer in it; export it with this one")
        if inside is None and n_vocab is not None and found.n_vocab != n_vocab:
            raise DataError(f"{name}: the tokenizer has {found.n_vocab} ids, the model's n_vocab is {n_vocab}")
        return found
    if inside is not None:
        return tokenizer_from_bytes(inside)
    if beside is not None and beside.exists():
        return tokenizer_from_bytes(beside.read_bytes())
    if n_vocab == BytesTokenizer.n_vocab:
        return BytesTokenizer()
    raise DataError(f"the graph has no tokenizer: give --tokenizer{f' with {n_vocab} ids' if n_vocab else ''}")
