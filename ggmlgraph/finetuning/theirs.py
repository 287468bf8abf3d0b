"""What other programs call the matrices that adapters are beside, and in which order they have their rows.

Used by `peft` and `llamacpp`, which read and write adapters of these names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.errors import UnsupportedError
from ggmlgraph.finetuning.basis import Opened
from ggmlgraph.graphfile import lowrank
from ggmlgraph.interchange import trained
from ggmlgraph.interchange.naming import Format
from ggmlgraph.table.dialect import V2


@dataclass(frozen=True)
class Names:
    """A model of ours in the words of one kind of checkpoint."""

    format: Format
    config: dict[str, Any]  # fields of our Config

    def path(self, weight: str) -> str:
        """Their name of a matrix, without .weight. Raises UnsupportedError if they have none of its own."""
        theirs = self.format.theirs(weight)
        if not theirs or "{e}" in theirs:
            raise UnsupportedError(f"{self.format.id} has no matrix of its own for {weight}")
        return theirs.removesuffix(".weight")

    def rows_out(self, weight: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values with a row for each of the matrix's, as they have them."""
        order = self.format.row_order(weight)
        return values if order is None else values[np.argsort(order.index(len(values), self.config))]

    def rows_in(self, weight: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The way back."""
        order = self.format.row_order(weight)
        return values if order is None else values[order.index(len(values), self.config)]


def names_of(opened: Opened, kind: str) -> Names:
    """Of a graph, with or without adapters. Raises UnsupportedError for a model that is none of ours, or that this kind
    of checkpoint does not have."""
    records, said = opened.records, opened.meta.finetuned
    if said and said.adapters:
        placed = lowrank.remove(records, said.adapters, {}, (), V2)
        records = [*placed.leafs, *placed.nodes]
    ours, config = trained.recognise(opened.path, opened.meta, records)
    known = trained.format_of(opened.path, ours.model, kind)
    return Names(known, config)
