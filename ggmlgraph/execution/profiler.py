"""Where a run's time goes: the seconds of its nodes added up by kind of node, with the work each kind did.

Used by `ggmlgraph bench --profile` and by tests/bench.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ggmlgraph.core import encoding
from ggmlgraph.core.program import Program
from ggmlgraph.table.op import TABLE


@dataclass
class Kind:
    """All nodes of one op."""

    op: str
    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0  # of matrix products
    nbytes: float = 0.0  # operands read and results written, each once


@dataclass(frozen=True)
class Profile:
    """A run by kinds, the slowest first."""

    seconds: float  # from before the run to after it, on the caller's clock
    kinds: list[Kind] = field(default_factory=list)

    @property
    def accounted(self) -> float:
        """Share of the run spent in nodes; the rest is Python, and starting the threads."""
        return sum(kind.seconds for kind in self.kinds) / self.seconds

    @property
    def products(self) -> float:
        """Share of the run spent in nodes that multiply matrices."""
        return sum(kind.seconds for kind in self.kinds if kind.flops) / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "accounted": self.accounted, "products": self.products}


def by_kind(program: Program, seconds: Iterable[float], total: float) -> Profile:
    """The profile of a run that took `total` seconds, from what `Program.profile` recorded of it."""
    kinds: dict[str, Kind] = {}
    for i, spent in enumerate(seconds):
        op = program.graph.op(i)
        if op == "none" or TABLE[op].kernel is None:
            continue
        kind = kinds.setdefault(op, Kind(op))
        kind.calls += 1
        kind.seconds += spent
        kind.flops += program.flops(i)
        kind.nbytes += node_nbytes(program, i)
    return Profile(total, sorted(kinds.values(), key=lambda kind: -kind.seconds))


def node_nbytes(program: Program, tensor_id: int) -> float:
    """Bytes of a node's operands and result; of a table only the rows that are gathered, what is updated twice."""
    op = TABLE[program.graph.op(tensor_id)]
    src = program.graph.src(tensor_id)
    operands = {
        name: source for name, source in zip(op.sources, src, strict=False) if source >= 0
    }  # optional ones last
    total = 0 if op.view else _nbytes(program, tensor_id)
    for name, operand in operands.items():
        is_table = op.name == "get_rows" and name == "a"
        total += _nbytes(program, tensor_id if is_table else operand) * (2 if name in op.writes else 1)
    return total


def _nbytes(program: Program, tensor_id: int) -> int:
    return encoding.nbytes(program.graph.dtype(tensor_id), math.prod(program.graph.shape(tensor_id)))


def table(profile: Profile) -> Iterator[str]:
    """The profile as lines of text."""
    yield f"{'kind of node':<24}{'calls':>7}{'ms':>10}{'share':>8}{'GFLOP/s':>9}{'GB/s':>8}"
    for kind in profile.kinds:
        rate = f"{kind.flops / kind.seconds / 1e9:.1f}" if kind.flops else ""
        yield (
            f"{kind.op:<24}{kind.calls:>7}{1e3 * kind.seconds:>10.2f}{kind.seconds / profile.seconds:>8.1%}"
            f"{rate:>9}{kind.nbytes / max(kind.seconds, 1e-9) / 1e9:>8.1f}"
        )
    yield f"{'step':<31}{1e3 * profile.seconds:>10.2f}"
    yield f"{profile.accounted:.1%} of the step is in these nodes, {profile.products:.1%} in matrix products"
