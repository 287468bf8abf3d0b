"""What a run leaves, opened: its graph, the roles it was trained with, its weights and its tokenizer.

The same for a run directory, a checkpoint in one, and a graph file, which has all of it inside. Used by `generate`,
`chat`, `eval`, `inspect` and the exports; `train` finds the checkpoint that it goes on from through `find_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ggmlgraph.core.limits import DEFAULT, Limits
from ggmlgraph.errors import CheckpointError, GGError, UsageError
from ggmlgraph.execution import checkpoint
from ggmlgraph.execution.roles import TARGETS, Roles
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.execution.slots import Ranks
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tokenizers.leaf import tokenizer_from_bytes
from ggmlgraph.tracing.tracer import Graph
from ggmlgraph.training import rundir
from ggmlgraph.training.config import TrainConfig


@dataclass(frozen=True)
class Run:
    """See the module; `open` makes one. Nothing large is read before it is asked for."""

    path: Path  # as it was given
    graph: Path  # the graph file
    directory: Path | None  # the run directory; None: there is the graph file alone

    @classmethod
    def open(cls, path: Path) -> Run:
        """Raises CheckpointError for a directory that is no run, GGError for a file that is not there."""
        if not path.is_dir():
            if not path.exists():
                raise GGError(f"{path}: no such file")
            return cls(path, path, None)
        directory = path.absolute().parent if rundir.is_checkpoint(path) else path
        if not rundir.graph_path(directory).exists():
            raise CheckpointError(f"{path} is no run directory: {directory} has no graph.bin")
        return cls(path, rundir.graph_path(directory), directory)

    @cached_property
    def config(self) -> TrainConfig | None:
        """The options it was trained with. Raises FormatError."""
        return rundir.read_config(self.directory) if self.directory else None

    @property
    def roles(self) -> Roles | None:
        """What the options say about the graph's tensors; None: the graph itself says it."""
        return roles_of(self.config) if self.config else None

    @cached_property
    def checkpoint(self) -> Path | None:
        """The latest whole checkpoint, or the one that was named; None: the weights are the graph file's.

        Raises CheckpointError where a run has none.
        """
        return rundir.find_checkpoint(self.path, (checkpoint.WEIGHTS,))[0] if self.directory else None

    @property
    def ctx(self) -> int | None:
        """The context that the checkpoint's weights were trained at."""
        return checkpoint.verify(self.checkpoint, ()).sizes.get("ctx") if self.checkpoint else None

    def tokenizer(self, inside: bytes | None) -> Tokenizer | None:
        """The one in the graph file, `inside`, else the one beside it. Raises FormatError."""
        beside = rundir.tokenizer_path(self.directory) if self.directory else None
        data = beside.read_bytes() if inside is None and beside and beside.exists() else inside
        return None if data is None else tokenizer_from_bytes(data)

    def runtime(self, *, threads: int | None = None, ctx: int | None = None, limits: Limits = DEFAULT) -> Runtime:
        """The model with its weights, by default at the context it was trained at. Raises as `Runtime` does."""
        runtime = Runtime(self.graph, threads=threads, ctx=ctx or self.ctx, limits=limits, roles=self.roles)
        if self.checkpoint:
            checkpoint.load_weights(runtime, self.checkpoint)
        return runtime

    def check(self) -> None:
        """Raises CheckpointError if the checkpoint is of another graph; for who reads its weights without a runtime."""
        if self.checkpoint:
            with Runtime(self.graph, roles=self.roles, mapped=True) as runtime:
                checkpoint.check(runtime, self.checkpoint)


def opened(
    graph: Graph | Path,
    config: TrainConfig,
    sizes: Mapping[str, int],
    ranks: Ranks,
    threads: int | None,
    memory_limit: int | None,
    limits: Limits,
) -> Runtime:
    """A graph to be trained with these options, at these named sizes, default its own. Raises as `Runtime` does."""
    return Runtime(
        graph,
        roles=roles_of(config),
        threads=threads,
        batch=sizes.get("batch"),
        ctx=sizes.get("ctx"),
        accumulate=config.accumulate,
        slots=config.slots,
        ranks=ranks,
        memory_limit=memory_limit,
        matmul_precision=config.matmul_precision,
        limits=limits,
        seed=config.seed,
        optimizer=config.optimizer,
        lr_of=config.lr_of,
        decay_of=config.decay_of,
        ema=config.ema,
    )


def files_of(config: TrainConfig) -> dict[str, Path]:
    """Names of inputs and their files, of `input` and `targets`; GIVEN is none. Raises UsageError."""
    files: dict[str, Path] = {}
    for word in config.input:
        name, equals, path = word.partition("=")
        if not (name and equals and path) or name in files:
            raise UsageError(f"--input {word}: expected NAME=FILE.npy, each NAME once")
        files[name] = Path(path)
    return files | ({TARGETS: Path(config.targets)} if config.targets else {})


def roles_of(config: TrainConfig) -> Roles | None:
    """What the options say about the graph's tensors; None for a text that the graph's own roles fit."""
    if config.is_text and not (config.params or config.loss or config.freeze):
        return None
    inputs = tuple(name for name in files_of(config) if name != TARGETS)
    return Roles(config.params, inputs, config.loss, bool(config.targets), config.freeze)
