"""`ggmlgraph merge MODEL [--adapter X]… -o graph.bin`."""

from __future__ import annotations

from pathlib import Path

from ggmlgraph.amounts import nbytes
from ggmlgraph.cli.terminal import say
from ggmlgraph.cli.told import told
from ggmlgraph.finetuning import attaching, factors, merging
from ggmlgraph.interchange.ondemand import graph_of


def command(path: Path, adapters: tuple[str, ...], output: Path) -> None:
    """Write a graph without adapters, which its weights have in them."""
    with attaching.attached(graph_of(path, told), adapters) as adapted:
        said = factors.said_of(merging.merge(adapted, output))
        say(f"{output}: {len(said.adapters)} adapters merged, {nbytes(output.stat().st_size)}")
        difference = merging.compare(adapted, output)
    if difference is not None:
        most, largest = f"{difference.most:.2g}", f"{difference.scale:.3g}"
        say(f"logits differ from those with adapters by {most} at most, the largest is {largest}")
