"""What is known of a run before its first step: memory by purpose, a batch that would fit, what measures its speed.

Used by `gg.Trainer`, which tells it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from ggmlgraph.amounts import nbytes
from ggmlgraph.core.levels import peak_flops
from ggmlgraph.errors import GGError, MemoryLimitError
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.training.config import TrainConfig
from ggmlgraph.training.console import Rate

SMALL_SHARE = 0.1  # of the update in a step's arithmetic, from which on it hardly matters
Needs = Mapping[str, int]  # bytes by what they are for


def needs_of(runtime: Runtime, config: TrainConfig, samples_nbytes: int) -> Needs:
    """Memory of the run. Raises MemoryLimitError, with a batch that fits if there is one."""
    try:
        cost = runtime.programs.train.cost()
    except MemoryLimitError as error:
        raise MemoryLimitError(f"{error}{_fitting(runtime, config)}") from None
    return {
        "weights, optimiser": cost.leaf_nbytes,
        "activations, gradients": cost.arena_nbytes,
        "kernels": cost.work_nbytes,
        "sums of slots": runtime.sums_nbytes,
        "samples": samples_nbytes,
    }


def _fitting(runtime: Runtime, config: TrainConfig) -> str:
    """The options of the largest divisor of the batch that fits."""
    if "batch" not in runtime.sizes:
        return ""
    for batch in _divisors(config.batch):
        other = runtime.at(batch=batch, accumulate=config.windows_per_step // batch)
        try:
            other.programs.train.cost()
        except GGError:
            continue
        return f": --batch {batch} --accumulate {other.accumulate}"
    return ""


def _divisors(n: int) -> Iterator[int]:
    """Of n, below n, falling."""
    return (d for d in range(n // 2, 0, -1) if n % d == 0)


def rate_of(runtime: Runtime, config: TrainConfig) -> Rate:
    """What turns the time of a step into what is shown."""
    settings = runtime.settings
    measure_peak = partial(peak_flops, settings.isa, runtime.threads, settings.matmul_precision)
    return Rate(
        n_steps=config.steps,
        tokens=config.windows_per_step * config.ctx,
        flops=sum(runtime.programs.train.flops_of_step(config.accumulate)),
        peak=measure_peak(),
        measure_peak=measure_peak,
        unit="tokens" if config.is_text else "samples",
    )


def summary(runtime: Runtime, config: TrainConfig, data: str, needs: Needs, rate: Rate) -> Iterator[str]:
    """All that as lines. data: the line about the data."""
    micro = f"{config.accumulate} x " if config.accumulate > 1 else ""
    used = ", ".join(f"{name} {nbytes(n)}" for name, n in needs.items() if n)
    yield f"model    {runtime.metadata.model or 'unnamed'}: {runtime.n_params:,} parameters"
    yield data
    what = f"windows of {config.ctx} tokens: {rate.tokens:,} tokens" if config.is_text else "samples"
    yield f"step     {micro}{config.batch} {what}, {rate.flops / 1e9:,.2f} GFLOP"
    program = runtime.programs.train
    gradients, update = program.flops_of_step(config.accumulate)
    if update:
        n_tokens = rate.tokens * update / gradients * (1 / SMALL_SHARE - 1)  # whose gradients leave it such a share
        share = update / (update + gradients)
        yield f"         of it Newton-Schulz {share:.0%}; {SMALL_SHARE:.0%} in steps of {n_tokens:,.0f} {rate.unit}"
    yield f"memory   {nbytes(sum(needs.values()))} at the peak: {used}"
    if program.recompute:
        yield f"         activations computed again: {program.recompute} of {program.max_recompute} parts"
    yield f"machine  {runtime.threads} threads, {runtime.level}, {rate.peak / 1e9:,.0f} GFLOP/s at the peak"
