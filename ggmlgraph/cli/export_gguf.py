"""`ggmlgraph export-gguf RUN|GRAPH -o model.gguf`."""

from __future__ import annotations

from pathlib import Path

from ggmlgraph.amounts import nbytes
from ggmlgraph.cli.terminal import say
from ggmlgraph.finetuning import basis, llamacpp, merging
from ggmlgraph.interchange import exportgguf, trained
from ggmlgraph.training.run import Run


def command(path: Path, output: Path, kind: str | None, ctx: int | None, alone: bool) -> None:
    """Write a model for llama.cpp, tokenizer included."""
    if alone:
        n = llamacpp.write(basis.open_base(path), output)
        say(f"{output}: {n} adapters")
        return
    with merging.plain(path) as merged:
        model = trained.find(merged, ctx or Run.open(path).ctx)
        notes = exportgguf.export(model, output, kind)
    types = kind or ", ".join(sorted({stored.dtype for stored in model.tensors.values()}))
    ids = f"tokenizer {model.tokenizer.kind}" if model.tokenizer else "no tokenizer"
    say(f"{output}: {model.architecture}, {types}, {nbytes(output.stat().st_size)}, {ids}")
    for note in notes:
        say(note, err=True)
