"""How large a graph a file may hold: what the importer refuses before anything is allocated or run.

Taken by `Runtime` and importer.py; the commands that open files of others offer it as options
(cli/commands.py). Memory of what is then run is limited apart from it, by `Runtime(memory_limit=...)`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The defaults let pass whatever a large machine can train, and nothing that only claims to be larger."""

    n_tensors: int = 1 << 16
    nbytes: int = 1 << 40  # of weights, inputs and all intermediate results, views apart
    flops: float = 1e15  # of computing every node once; an elementwise op counts its operands' elements


DEFAULT = Limits()
