"""`ggmlgraph export-hf RUN|GRAPH -o DIR`."""

from __future__ import annotations

from pathlib import Path

from ggmlgraph.cli.terminal import say
from ggmlgraph.finetuning import basis, merging, peft
from ggmlgraph.interchange import exporthf, trained
from ggmlgraph.training.run import Run


def command(path: Path, output: Path, ctx: int | None, alone: bool) -> None:
    """Write a model as a folder that transformers loads: config, weights in float32, tokenizer."""
    if alone:
        n = peft.write(basis.open_base(path), output)
        say(f"{output}: {n} adapters")
        return
    with merging.plain(path) as merged:
        model = trained.find(merged, ctx or Run.open(path).ctx)
        notes = exporthf.export(model, output)
    ids = f"tokenizer {model.tokenizer.kind}" if model.tokenizer else "no tokenizer"
    say(f"{output}: {model.architecture}, {len(model.tensors)} tensors, {ids}")
    for note in notes:
        say(note, err=True)
