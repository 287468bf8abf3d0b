"""A training run as an object: `gg.Trainer`, which `ggmlgraph train` is written on.

It finds out what a run is made of and where it goes on from; the steps themselves are training/loop.py.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

import msgspec
from numpy.typing import ArrayLike

from ggmlgraph import __version__, machine
from ggmlgraph.amounts import nbytes
from ggmlgraph.core.limits import DEFAULT, Limits
from ggmlgraph.data.batches import Arrays
from ggmlgraph.errors import CheckpointError, GGError, UsageError
from ggmlgraph.execution import checkpoint
from ggmlgraph.execution.namedgraph import LOGITS
from ggmlgraph.execution.runtime import file_of
from ggmlgraph.execution.slots import Alone, Ranks
from ggmlgraph.generation import wave
from ggmlgraph.generation.generate import Generator
from ggmlgraph.generation.sampling import Sampling
from ggmlgraph.library import data as given_data
from ggmlgraph.library import following, vocabulary
from ggmlgraph.library.data import Data, Given, Name
from ggmlgraph.tokenizers.base import Tokenizer
from ggmlgraph.tracing.tracer import Graph
from ggmlgraph.training import rundir
from ggmlgraph.training.config import Options, TrainConfig
from ggmlgraph.training.console import Console, Rate, duration
from ggmlgraph.training.loop import Loop, Pieces, Progress, TrainingData
from ggmlgraph.training.metrics import check_ours
from ggmlgraph.training.report.history import Column, read
from ggmlgraph.training.run import opened
from ggmlgraph.training.rundir import RunDirectory
from ggmlgraph.training.summary import needs_of, rate_of, summary
from ggmlgraph.training.texts import text_data

ALONE = Alone()


@dataclass(frozen=True)
class Outcome:
    """What a run has come to."""

    run: Path
    step: int  # the last one done
    n_steps: int
    checkpoint: Path | None  # of that step; None before the first

    @property
    def finished(self) -> bool:
        """Whether all steps are done; else it was asked to stop."""
        return self.step >= self.n_steps

    @cached_property
    def history(self) -> dict[str, Column]:
        """A number a step, those before a resume too, float64, NaN where a step has none: step, loss, val_loss,
        val_accuracy, lr, grad_norm, tokens, tokens_per_s, elapsed_s."""
        return read(rundir.metrics_path(self.run)).columns

    @property
    def loss(self) -> float | None:
        """Of the last step."""
        return self._last("loss")

    @property
    def val_loss(self) -> float | None:
        """The last one there is."""
        return self._last("val_loss")

    def _last(self, name: str) -> float | None:
        column = self.history[name]
        there = column[column == column]
        return float(there[-1]) if len(there) else None

    def __repr__(self) -> str:
        losses = ", ".join(f"{name} {value:.4f}" for name in ("loss", "val_loss") if (value := self._last(name)))
        return f"<Outcome of {self.run}: step {self.step} of {self.n_steps}{losses and f', {losses}'}>"

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"


class Trainer:
    """A training run, kept in a directory: options, metrics, checkpoints. `ggmlgraph train` is the same as a command.

        gg.Trainer(graph, "run", data="text.txt", steps=300, lr=1e-3).run()

    graph: a traced graph, or the path of a graph file.
    run: the directory, made if need be; it must not hold a run, unless that is resumed.
    data: names of UTF-8 texts; or a dict of arrays, .npy or .npz files by input, the first axis counting samples, of
        which the last tenth is kept for validation; or batches, dicts of arrays by input, that a function gives for
        step 0, 1, ..., or something that can be iterated over. Default: the text that the graph names.
    targets: class numbers, an array or file: the loss becomes the cross-entropy with them (see execution/roles.py).
    validation: batches to validate on, where `data` are batches.
    tokenizer: what `gg.tokenizer` gives or reads; default that of the graph, else bytes for a vocabulary of 256.
    resume: "auto", to go on from the latest checkpoint in `run` if there is one, or a checkpoint's path; options that
        are not given are then those of the run.
    init_from: a checkpoint or run to begin with the weights of, and the optimiser's state where it fits.
    threads, memory_limit, limits: as of `Runtime`.
    ranks: processes that share the work, of which this is the first; the others follow (library/following.py).
    tell: is told what happens, a line each; None: nobody is.
    options: steps, batch, accumulate, slots, ctx, optimizer, lr, lr_of, decay_of, freeze, warmup, schedule,
        weight_decay, clip, clip_value, ema, seed, matmul_precision, eval_every, sample_every, save_every, keep,
        keep_every, layers_every, tensorboard, spikes, prompt, predict, params, loss, val_data, mix, proportions: as of
        `ggmlgraph train`; optimizer is `gg.AdamW()` or another.

    What is wrong is told before the first step: UsageError, DataError, CheckpointError, MemoryLimitError, and what
    `Runtime` raises. A context manager, which frees the memory; the run's directory is others' again when `run` ends.
    """

    def __init__(
        self,
        graph: Graph | Name,
        run: Name = "run",
        *,
        data: Data = None,
        targets: Name | ArrayLike | None = None,
        validation: Sequence[Arrays] = (),
        tokenizer: Tokenizer | Name | None = None,
        resume: Name | None = None,
        init_from: Name | None = None,
        threads: int | None = None,
        memory_limit: int | None = None,
        limits: Limits = DEFAULT,
        ranks: Ranks = ALONE,
        tell: Callable[[str], object] | None = print,
        **options: Unpack[Options],
    ) -> None:
        self._tell: Callable[[str], object] = tell or (lambda line: None)
        self._graph = graph if isinstance(graph, Graph) else Path(graph)
        if isinstance(self._graph, Path) and not self._graph.exists():
            raise GGError(f"{graph}: no such file")
        given = given_data.told_apart(data, targets, validation)
        named = {**given.options, **{name: value for name, value in options.items() if value is not None}}
        with ExitStack() as stack:
            self._directory = stack.enter_context(RunDirectory(Path(run)))
            self.start = self._start(resume)
            before = rundir.read_config(self.start.absolute().parent if self.start else Path(run)) if resume else None
            known = {**(msgspec.structs.asdict(before) if before else {}), **named}
            if ranks.size > 1:
                known.setdefault("slots", known.get("accumulate", 1))
            self.config = TrainConfig.of(known)
            sizes = {size: known[size] for size in ("batch", "ctx") if self.config.is_text and known.get(size)}
            self.runtime = opened(self._graph, self.config, sizes, ranks, threads, memory_limit, limits)
            stack.callback(lambda: self.runtime.close())
            if init_from is not None and self.start is None:
                self._init(Path(init_from))
            self._generator: Generator | None = None
            if self.config.is_text:
                loop_data = self._on_text(tokenizer, anew="data" in named or tokenizer is not None)
            else:
                loop_data = self._on_samples(given, known)
            self._make_loop(loop_data)
            self._stack = stack.pop_all()

    # ------------------------------------------------------------ how it begins

    def _start(self, resume: Name | None) -> Path | None:
        """The checkpoint to go on from, None to begin; damaged later ones of this run are moved out of the way."""
        run = self._directory
        check_ours(run.metrics_path)
        if resume is None:
            run.check_new()
            return None
        directory = run.path if resume == "auto" else Path(resume)
        if resume == "auto" and not rundir.steps(directory):
            return None
        found, skipped = self._checkpoint(directory)
        if directory.resolve() == run.path.resolve():
            for path in rundir.steps(run.path)[:skipped]:
                rundir.set_aside(path)
        run.check_next(rundir.step_of(found) if found.name.startswith("step_") else 0)
        return found

    def _init(self, path: Path) -> None:
        found, _ = self._checkpoint(path)
        if not checkpoint.begin(self.runtime, found):
            self._tell(f"{found} was trained in other parameters: its weights are taken, the optimiser begins anew")

    def _checkpoint(self, path: Path) -> tuple[Path, int]:
        """The latest whole one, and how many were skipped, which is told."""
        found, skipped = rundir.find_checkpoint(path)
        for error in skipped:
            self._tell(f"warning: skipped: {error}")
        return found, len(skipped)

    # ------------------------------------------------------------ what it is trained on

    def _on_text(self, tokenizer: Tokenizer | Name | None, *, anew: bool) -> TrainingData:
        """anew: read the texts, even where the run that goes on has their tokens."""
        runtime, run, start = self.runtime, self._directory, self.start
        if "tokens" not in runtime.metadata.inputs.values():
            words = " ".join(f"--input {name}=FILE.npy" for name in runtime.inputs)
            raise UsageError(f"the graph takes no text: give {words or '--input NAME=FILE.npy'}")
        batch, ctx = runtime.window
        texts = self.config.data
        if not texts and not self.config.mix:
            texts = (runtime.metadata.corpus,) if runtime.metadata.corpus else ()
        if not texts and not self.config.mix:
            raise UsageError("no text to train on: give --data FILE")
        self.config = msgspec.structs.replace(self.config, batch=batch, ctx=ctx, data=texts)
        beside = rundir.tokenizer_path(start.absolute().parent if start else run.path)
        self.tokenizer = vocabulary.chosen(runtime, tokenizer, beside if start else None)
        data, self._told = text_data(
            self.config, self.tokenizer, run.tokens_path, n_vocab=runtime.n_vocab, start=start, anew=anew
        )
        self._prompt = self.config.prompt or ""
        if self.config.prompt is None and wave.is_wave(runtime.metadata.corpus, self.tokenizer):
            self._prompt = wave.PROMPT
        self.tokenizer.encode(self._prompt)  # a prompt the tokenizer does not know is told now, not after training
        if self.config.predict and self.makes_text:
            self._generator = Generator(runtime, self.tokenizer)
        return data

    def _on_samples(self, given: Given, known: dict[str, Any]) -> TrainingData:
        accumulate = self.config.accumulate
        if self.config.data:
            raise UsageError("--data is a text: give --data or --input, not both")
        sizes = given_data.sizes_of(given.batches, self.runtime, accumulate) if given.batches else {}
        if "batch" in self.runtime.sizes and known.get("batch"):
            sizes["batch"] = known["batch"]
        runtime = self.runtime = self.runtime.at(sizes.get("batch"), sizes.get("ctx"), accumulate, self.config.slots)
        data: TrainingData
        if given.batches:
            data, rows = given.batches, sizes.get("batch", 1)
            self._told = f"samples  batches of {', '.join(given.batches.first)}"
        else:
            data = arrays = given_data.array_data(given, runtime, self.config)
            rows = arrays.rows
            self._told = f"samples  {data.name}: {data.n_train:,} to train on, {data.n_val:,} to validate"
        if known.get("batch", rows) != rows or known.get("ctx", 1) != 1:
            raise UsageError(f"a run of this graph takes {rows} samples, which only --accumulate can multiply")
        self.config = msgspec.structs.replace(self.config, batch=rows, ctx=1, predict=0)
        runtime.check(data.samples(0, self.config.windows_per_step))
        return data

    def _make_loop(self, data: TrainingData) -> None:
        cost = self._generator.cost() if self._generator else None
        self._needs = needs_of(self.runtime, self.config, cost.arena_nbytes + cost.work_nbytes if cost else 0)
        self._loop = Loop(
            self.runtime, data, self.config, self._directory, sample=self._sample if self._generator else None
        )
        if self.start is not None:
            self._loop.resume(self.start)

    def _sample(self, step: int) -> Pieces:
        assert self._generator is not None
        how = Sampling(seed=self.config.seed)
        with self.runtime.averaged():
            return self._generator.scored(self._prompt, self.config.predict, how, f"sample {step}")

    # ------------------------------------------------------------ what it does

    @property
    def progress(self) -> Progress:
        """Steps, tokens and seconds so far."""
        return self._loop.progress

    @property
    def makes_text(self) -> bool:
        """Whether what is trained is a language model: one with an output `logits`."""
        return self.config.is_text and self.runtime.graph.find(LOGITS) >= 0

    @cached_property
    def rate(self) -> Rate:
        """What its speed is measured by; for a console of one's own."""
        return rate_of(self.runtime, self.config)

    def evaluate(self) -> tuple[float | None, float | None]:
        """Mean loss of what is kept for validation, nats per token for text, and the share of right answers.

        None for a loss that is not finite, or where there is nothing to validate on; and where answers are no classes.
        """
        return self._loop.evaluate()

    def run(self, console: Console | None = None) -> Outcome:
        """Train up to the last step, or until a signal asks to stop (Ctrl-C: the step is finished and saved first).

        console: is told instead of `tell`. Raises GGError after too many updates in a row that were not finite, or
        checkpoints that could not be saved.
        """
        self._directory.lock()
        try:
            with console or Console(self.rate, self._tell) as shown:
                return self._run(shown)
        finally:
            self._directory.close()

    def _run(self, console: Console) -> Outcome:
        self._directory.check_next(self.progress.step)
        self._keep()
        for line in summary(self.runtime, self.config, self._told, self._needs, self.rate):
            console.say(line)
        if self.start is not None:
            console.say(f"resumed from {self.start}, step {self.progress.step} of {self.config.steps}")
        following.lead(self.runtime, self.config)
        finished = self._loop.run(console, self._facts())
        outcome = self._outcome()
        console.say(self._ending(outcome))
        if finished and self._generator:
            self._last_sample(console)
        return outcome

    def _keep(self) -> None:
        """Put into the directory what the run is made of. A graph that is traced anew need not be the same file: the
        checkpoint that it goes on from says whether it is the same graph."""
        run = self._directory
        if not (isinstance(self._graph, Graph) and self.start and rundir.graph_path(run.path).exists()):
            with file_of(self._graph) as path:
                run.put_graph(Path(path))
        if self.config.is_text and self.runtime.tokenizer_bytes() is None:
            run.put_tokenizer(self.tokenizer.to_bytes())
        run.put_config(self.config)

    def _facts(self) -> dict[str, str | int | float]:
        """What makes the run what it is, and what its speed is measured by."""
        runtime, packages = self.runtime, ("numpy", "sentencepiece", "tokenizers")
        inside = runtime.tokenizer_bytes()
        return {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "versions": ", ".join([f"ggmlgraph {__version__}", f"Python {platform.python_version()}",
                                   *(f"{name} {found}" for name in packages if (found := machine.version_of(name)))]),
            "machine": f"{machine.processor()}, {platform.platform()}",
            "threads": runtime.threads,
            "level": runtime.level,
            "parameters": runtime.n_params,
            "graph": checkpoint.graph_digest(runtime),
            "data": self._loop.data.digest,
            "tokenizer": "none" if inside is None else hashlib.sha256(inside).hexdigest(),
            "memory": nbytes(runtime.programs.train.cost().nbytes),
            "flops_per_token": self.rate.flops / self.rate.tokens,
            "peak_flops": self.rate.peak,
        }  # fmt: skip

    def _outcome(self) -> Outcome:
        """Raises CheckpointError if the last step is not saved."""
        path, step = self._directory.path, self.progress.step
        saved = rundir.step_directory(path, step)
        if step and not saved.exists():
            raise CheckpointError(f"step {step} could not be saved")
        return Outcome(path, step, self.config.steps, saved if step else None)

    def _ending(self, outcome: Outcome) -> str:
        skipped = f", {self.progress.n_skipped} updates skipped" if self.progress.n_skipped else ""
        return (
            f"step {outcome.step} of {outcome.n_steps}, {duration(self.progress.elapsed_s)}{skipped}, "
            f"memory of the process {nbytes(machine.peak_memory())}, saved in {outcome.checkpoint}"
        )

    def _last_sample(self, console: Console) -> None:
        text = self._loop.told_sample(self.progress.step)
        console.sample(self.progress.step, text)
        if wave.is_wave(self.runtime.metadata.corpus, self.tokenizer):
            for line in wave.report(text, self._prompt, self.tokenizer):
                console.say(line)

    def close(self) -> None:
        """Free its memory; see `Runtime.close`."""
        self._stack.close()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        where = f"step {self.progress.step} of {self.config.steps}, in {os.fspath(self._directory.path)}"
        return f"<Trainer {self.runtime.summary()}; {where}>"

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"
