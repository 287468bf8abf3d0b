"""`ggmlgraph merge RUN|GRAPH -o graph.bin`."""

from __future__ import annotations

from pathlib import Path

from ggmlgraph.cli.amounts import nbytes
from ggmlgraph.cli.terminal import say
from ggmlgraph.finetuning import merging


def command(path: Path, output: Path) -> None:
    """Write a graph without adapters, which its weights have in them."""
    said = merging.said_of(merging.merge(path, output))
    say(f"{output}: {len(said.adapters)} adapters merged, {nbytes(output.stat().st_size)}")
    difference = merging.compare(path, output)
    if difference is not None:
        most, largest = f"{difference.most:.2g}", f"{difference.scale:.3g}"
        say(f"logits differ from those with adapters by {most} at most, the largest is {largest}")
