"""`ggmlgraph train graph.bin --data FILE… -o run/`: options in, a trained run directory out."""

from __future__ import annotations

import hashlib
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
from click.core import ParameterSource

from ggmlgraph import __version__, machine
from ggmlgraph.cli import precision
from ggmlgraph.cli.amounts import nbytes
from ggmlgraph.cli.doctor import processor, version_of
from ggmlgraph.cli.terminal import say
from ggmlgraph.core.levels import peak_flops
from ggmlgraph.core.limits import Limits
from ggmlgraph.data.arrays import ArrayData
from ggmlgraph.errors import CheckpointError, DataError, GGError, MemoryLimitError, UsageError
from ggmlgraph.execution import checkpoint
from ggmlgraph.execution.namedgraph import LOGITS
from ggmlgraph.execution.runtime import Runtime
from ggmlgraph.generation import wave
from ggmlgraph.generation.generate import Generator
from ggmlgraph.generation.sampling import Sampling
from ggmlgraph.interchange.tokenizer import load_tokenizer
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tokenizers.leaf import tokenizer_from_bytes
from ggmlgraph.tokenizers.plain import BytesTokenizer
from ggmlgraph.training import rundir
from ggmlgraph.training.config import TrainConfig
from ggmlgraph.training.console import Console, Rate, duration, shown_sample
from ggmlgraph.training.metrics import check_ours
from ggmlgraph.training.run import files_of, roles_of
from ggmlgraph.training.rundir import RunDirectory
from ggmlgraph.training.texts import text_data
from ggmlgraph.training.trainer import Pieces, Trainer

WARMUP_SHARE = 10  # of the steps, one in so many, at most 100


def command(
    graph: Path,
    output: Path,
    tokenizer: Path | None,
    threads: int | None,
    memory_limit: int | None,
    resume: str | None,
    init_from: Path | None,
    limits: Limits,
    **options: Any,
) -> None:
    """Train GRAPH on text, or any graph of ggml's on numpy files, and keep everything in a run directory."""
    source = click.get_current_context().get_parameter_source
    given = {k: v for k, v in options.items() if source(k) is not ParameterSource.DEFAULT}
    if not graph.exists():
        raise GGError(f"{graph}: no such file")
    with RunDirectory(output) as run:
        start = _start(run, resume)
        before = rundir.read_config(start.absolute().parent if start else run.path) if resume else None
        config, runtime = _open(graph, before, given, options, threads, memory_limit, limits)
        with runtime:
            if init_from is not None and start is None:
                _init(runtime, init_from)
            _train(run, graph, runtime, config, start, tokenizer, anew="data" in given or tokenizer is not None)


def _start(run: RunDirectory, resume: str | None) -> Path | None:
    """The checkpoint to go on from, None to begin; damaged later ones of this run are moved out of the way."""
    check_ours(run.metrics_path)
    if resume is None:
        run.check_new()
        return None
    directory = run.path if resume == "auto" else Path(resume)
    if resume == "auto" and not rundir.steps(directory):
        return None
    found, skipped = rundir.find_checkpoint(directory)
    for error in skipped:
        say(f"warning: skipped: {error}", err=True)
    if directory.resolve() == run.path.resolve():
        for path in rundir.steps(run.path)[: len(skipped)]:
            rundir.set_aside(path)
    run.check_next(rundir.step_of(found) if found.name.startswith("step_") else 0)
    return found


def _init(runtime: Runtime, path: Path) -> None:
    """Begin with the weights of a checkpoint, or of a run's latest, and with its optimiser's state where that fits."""
    found, skipped = rundir.find_checkpoint(path)
    for error in skipped:
        say(f"warning: skipped: {error}", err=True)
    if not checkpoint.begin(runtime, found):
        say(f"{found} was trained in other parameters: its weights are taken, the optimiser begins anew", err=True)


def _open(
    graph: Path,
    before: TrainConfig | None,
    given: dict[str, Any],
    options: dict[str, Any],
    threads: int | None,
    memory_limit: int | None,
    limits: Limits,
) -> tuple[TrainConfig, Runtime]:
    """The options, resolved: those given, else those of the run, else the graph's or the defaults."""
    if before is not None:
        merged = {**msgspec.structs.asdict(before), **given}
    else:
        merged = {k: v for k, v in options.items() if v is not None}
        merged.setdefault("warmup", min(100, merged["steps"] // WARMUP_SHARE))
    asked = TrainConfig(**merged)
    runtime = Runtime(
        graph,
        roles=roles_of(asked),
        threads=threads,
        batch=merged.get("batch") if asked.is_text else None,
        ctx=merged.get("ctx") if asked.is_text else None,
        accumulate=asked.accumulate,
        memory_limit=memory_limit,
        matmul_precision=asked.matmul_precision,
        limits=limits,
        seed=asked.seed,
    )
    if not asked.is_text:
        if "batch" in runtime.sizes:
            runtime = runtime.at(batch=merged.get("batch"), accumulate=asked.accumulate)
        return _for_samples(asked, merged, runtime), runtime
    if "tokens" not in runtime.metadata.inputs.values():
        words = " ".join(f"--input {name}=FILE.npy" for name in runtime.inputs)
        raise UsageError(f"{graph} takes no text: give {words or '--input NAME=FILE.npy'}")
    batch, ctx = runtime.window
    data = asked.data or ((runtime.metadata.corpus,) if runtime.metadata.corpus and not asked.mix else ())
    if not data and not asked.mix:
        raise UsageError("no text to train on: give --data FILE")
    return msgspec.structs.replace(asked, batch=batch, ctx=ctx, data=data), runtime


def _for_samples(asked: TrainConfig, merged: Mapping[str, Any], runtime: Runtime) -> TrainConfig:
    if asked.data:
        raise UsageError("--data is a text: give --data or --input, not both")
    rows = ArrayData(files_of(asked), runtime, asked.seed).rows
    if merged.get("batch", rows) != rows or merged.get("ctx", 1) != 1:
        raise UsageError(f"a run of this graph takes {rows} samples, which only --accumulate can multiply")
    return msgspec.structs.replace(asked, batch=rows, ctx=1, predict=0)


def _train(
    run: RunDirectory,
    graph: Path,
    runtime: Runtime,
    config: TrainConfig,
    start: Path | None,
    tokenizer: Path | None,
    *,
    anew: bool,
) -> None:
    """anew: read the texts, even where the run that goes on has their tokens."""
    if not config.is_text:
        _train_on_samples(run, graph, runtime, config, start)
        return
    chosen = _tokenizer(runtime, run, start, tokenizer)
    makes_text = runtime.graph.find(LOGITS) >= 0
    data, told = text_data(config, chosen, run.tokens_path, n_vocab=runtime.n_vocab, start=start, anew=anew)
    generator = Generator(runtime, chosen) if config.predict and makes_text else None
    needs = _memory(runtime, config, generator)
    prompt = _prompt(config, runtime, chosen)
    chosen.encode(prompt)  # a prompt the tokenizer does not know is told now, not after training

    def sample(step: int) -> Pieces:
        assert generator is not None
        return generator.scored(prompt, config.predict, Sampling(seed=config.seed), f"sample {step}")

    trainer = Trainer(runtime, data, config, run, sample=sample if generator else None)
    if start is not None:
        trainer.resume(start)
    if runtime.tokenizer_bytes() is None:
        run.put_tokenizer(chosen.to_bytes())
    if not _run(run, graph, trainer, start, told, needs):
        return
    if makes_text:
        say(f"try: ggmlgraph generate {shlex.quote(str(run.path))}")
    if generator is not None:
        text = trainer.told_sample(trainer.progress.step)
        say(shown_sample(trainer.progress.step, text))
        if wave.is_wave(runtime.metadata.corpus, chosen):
            say("\n".join(wave.report(text, prompt, chosen)))


def _train_on_samples(
    run: RunDirectory, graph: Path, runtime: Runtime, config: TrainConfig, start: Path | None
) -> None:
    data = ArrayData(files_of(config), runtime, config.seed)
    needs = _memory(runtime, config, None)
    runtime.check(data.batch(0, config.windows_per_step))
    trainer = Trainer(runtime, data, config, run, sample=None)
    if start is not None:
        trainer.resume(start)
    told = f"samples  {data.name}: {data.n_train:,} to train on, {data.n_val:,} to validate"
    _run(run, graph, trainer, start, told, needs)


def _run(
    run: RunDirectory, graph: Path, trainer: Trainer, start: Path | None, data: str, needs: Mapping[str, int]
) -> bool:
    """Train, and say what happens; whether all steps were done."""
    runtime, config = trainer.runtime, trainer.config
    run.put_graph(graph)
    run.put_config(config)
    rate = _rate(runtime, config)
    for line in _summary(runtime, config, data, needs, rate):
        say(line)
    if start is not None:
        say(f"resumed from {start}, step {trainer.progress.step} of {config.steps}")
    with Console(rate) as console:
        finished = trainer.run(console, _facts(trainer, rate))
    _tell_end(run, trainer, finished)
    return finished


def _facts(trainer: Trainer, rate: Rate) -> dict[str, str | int | float]:
    """What makes the run what it is, and what its speed is measured by."""
    runtime, packages = trainer.runtime, ("numpy", "sentencepiece", "tokenizers")
    inside = runtime.tokenizer_bytes()
    return {
        "command": shlex.join(["ggmlgraph", *sys.argv[1:]]),
        "versions": ", ".join([f"ggmlgraph {__version__}", f"Python {platform.python_version()}",
                               *(f"{name} {found}" for name in packages if (found := version_of(name)))]),
        "machine": f"{processor()}, {platform.platform()}",
        "threads": runtime.threads,
        "level": precision.level(runtime),
        "parameters": runtime.n_params,
        "graph": checkpoint.graph_digest(runtime),
        "data": trainer.data.digest,
        "tokenizer": "none" if inside is None else hashlib.sha256(inside).hexdigest(),
        "memory": nbytes(runtime.programs.train.cost().nbytes),
        "flops_per_token": rate.flops / rate.tokens,
        "peak_flops": rate.peak,
    }  # fmt: skip


def _tokenizer(runtime: Runtime, run: RunDirectory, start: Path | None, path: Path | None) -> Tokenizer:
    """The graph's tokenizer, else the one given, else that of the resumed run. Raises DataError if they do not fit."""
    n_vocab, inside = runtime.n_vocab, runtime.tokenizer_bytes()
    beside = rundir.tokenizer_path(start.absolute().parent) if start else rundir.tokenizer_path(run.path)
    if path is not None:
        chosen = load_tokenizer(path)
        if inside is not None and chosen.to_bytes() != tokenizer_from_bytes(inside).to_bytes():
            raise DataError(f"{path}: the graph has another tokenizer in it; export it with this one")
        if inside is None and n_vocab is not None and chosen.n_vocab != n_vocab:
            raise DataError(f"{path}: the tokenizer has {chosen.n_vocab} ids, the model's n_vocab is {n_vocab}")
        return chosen
    if inside is not None:
        return tokenizer_from_bytes(inside)
    if start is not None and beside.exists():
        return tokenizer_from_bytes(beside.read_bytes())
    if n_vocab == BytesTokenizer.n_vocab:
        return BytesTokenizer()
    raise DataError(f"the graph has no tokenizer: give --tokenizer{f' with {n_vocab} ids' if n_vocab else ''}")


def _prompt(config: TrainConfig, runtime: Runtime, tokenizer: Tokenizer) -> str:
    if config.prompt is not None:
        return config.prompt
    return wave.PROMPT if wave.is_wave(runtime.metadata.corpus, tokenizer) else ""


# ---------------------------------------------------------------- told before the first step


def _memory(runtime: Runtime, config: TrainConfig, generator: Generator | None) -> Mapping[str, int]:
    """Bytes of the run by what they are for. Raises MemoryLimitError, with a batch that fits if there is one."""
    try:
        cost = runtime.programs.train.cost()
    except MemoryLimitError as error:
        raise MemoryLimitError(f"{error}{_fitting(runtime, config)}") from None
    sampling = generator.cost() if generator else None
    return {
        "weights, optimiser": cost.leaf_nbytes,
        "activations, gradients": cost.arena_nbytes,
        "kernels": cost.work_nbytes,
        "samples": sampling.arena_nbytes + sampling.work_nbytes if sampling else 0,
    }


def _fitting(runtime: Runtime, config: TrainConfig) -> str:
    """The flags of the largest divisor of the batch that fits."""
    if "batch" not in runtime.sizes:
        return ""
    for batch in _divisors(config.batch):
        other = runtime.at(batch=batch)
        other.accumulate = config.windows_per_step // batch
        try:
            other.programs.train.cost()
        except GGError:
            continue
        return f": --batch {batch} --accumulate {other.accumulate}"
    return ""


def _divisors(n: int) -> Iterator[int]:
    """Of n, below n, falling."""
    return (d for d in range(n // 2, 0, -1) if n % d == 0)


def _rate(runtime: Runtime, config: TrainConfig) -> Rate:
    return Rate(
        n_steps=config.steps,
        tokens=config.windows_per_step * config.ctx,
        flops=runtime.programs.train.cost().flops * config.accumulate,
        peak=peak_flops(runtime.settings.isa, runtime.threads, runtime.settings.matmul_precision),
        measure_peak=partial(peak_flops, runtime.settings.isa, runtime.threads, runtime.settings.matmul_precision),
        unit="tokens" if config.is_text else "samples",
    )


def _summary(
    runtime: Runtime,
    config: TrainConfig,
    data: str,
    needs: Mapping[str, int],
    rate: Rate,
) -> Iterator[str]:
    micro = f"{config.accumulate} x " if config.accumulate > 1 else ""
    used = ", ".join(f"{name} {nbytes(n)}" for name, n in needs.items() if n)
    yield f"model    {runtime.metadata.model or 'unnamed'}: {runtime.n_params:,} parameters"
    yield data
    what = f"windows of {config.ctx} tokens: {rate.tokens:,} tokens" if rate.unit == "tokens" else "samples"
    yield f"step     {micro}{config.batch} {what}, {rate.flops / 1e9:,.2f} GFLOP"
    yield f"memory   {nbytes(sum(needs.values()))} at the peak: {used}"
    program = runtime.programs.train
    if program.recompute:
        yield f"         activations computed again: {program.recompute} of {program.max_recompute} parts"
    yield (
        f"machine  {runtime.threads} threads, {precision.level(runtime)}, {rate.peak / 1e9:,.0f} GFLOP/s at the peak"
    )


def _tell_end(run: RunDirectory, trainer: Trainer, finished: bool) -> None:
    progress, config = trainer.progress, trainer.config
    saved = rundir.step_directory(run.path, progress.step)
    if progress.step and not saved.exists():
        raise CheckpointError(f"step {progress.step} could not be saved")
    skipped = f", {progress.n_skipped} updates skipped" if progress.n_skipped else ""
    say(
        f"step {progress.step} of {config.steps}, {duration(progress.elapsed_s)}{skipped}, "
        f"memory of the process {nbytes(machine.peak_memory())}, saved in {saved}"
    )
    if not finished:
        where = shlex.quote(str(run.path))
        say(f"stopped; go on with: ggmlgraph train {where}/graph.bin -o {where} --resume auto")
