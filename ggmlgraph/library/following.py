"""What all processes of a job but the first do: they take part in what rank 0 trains, and keep nothing.

Rank 0 runs the whole of `Trainer`; it reads the data, decides, evaluates and writes. The others open the same graph at
the sizes that it says, get its weights, and then compute their slots of each step on the samples that it sends. Used by
`ggmlgraph train` under mpirun or srun.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggmlgraph import __version__
from ggmlgraph.cluster.mpi import MpiRanks
from ggmlgraph.core.limits import Limits
from ggmlgraph.errors import UsageError
from ggmlgraph.execution import checkpoint
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.training.config import TrainConfig
from ggmlgraph.training.run import opened


def common_facts(runtime: Runtime) -> dict[str, str]:
    """What has to be the same on all ranks for the bits to be."""
    return {
        "the version of ggmlgraph": __version__,
        "the order of bytes": sys.byteorder,
        "the instruction set": runtime.level,
        "the graph": checkpoint.graph_digest(runtime),
    }


def lead(runtime: Runtime, config: TrainConfig) -> None:
    """Have the other ranks open what rank 0 has."""
    facts = {"options": config.options(), "sizes": runtime.sizes, "common": common_facts(runtime)}
    runtime.ranks.lead("run", facts, {})


def follow(graph: Path, ranks: MpiRanks, *, threads: int | None, memory_limit: int | None, limits: Limits) -> None:
    """Take part until rank 0 ends. Raises UsageError if this rank has another graph, version or processor than that
    one, or comes to other weights; and what `Runtime` raises."""
    order, _ = ranks.order()
    if order.kind == "end":
        return
    config = TrainConfig.of(order.facts["options"])
    with opened(graph, config, order.facts["sizes"], ranks, threads, memory_limit, limits) as runtime:
        _compare(order.facts["common"], common_facts(runtime))
        while True:
            order, arrays = ranks.order()
            match order.kind:
                case "state":
                    runtime.n_steps = order.facts["n_steps"]
                    runtime.share()
                case "check":
                    _compare(order.facts, {"weights": runtime.digest()})
                case "step":
                    runtime.step(arrays, **order.facts)
                case _:
                    return


def _compare(rank_0: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for name, value in rank_0.items():
        if own[name] != value:
            raise UsageError(f"{name} is {own[name]}, of rank 0 {value}")
