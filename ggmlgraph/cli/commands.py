"""Every command line: arguments, options, help. The work of `ggmlgraph NAME` is `command` in the module cli/NAME.py.

Those modules are imported when a command runs: with them come numpy and the runtime, for which no `--help` waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ggmlgraph.cli import outputs
from ggmlgraph.cli.amounts import Memory
from ggmlgraph.cli.updating import FactorType, OptimizerType, by_pattern
from ggmlgraph.core import limits
from ggmlgraph.core.limits import Limits
from ggmlgraph.execution.optimizers import spelled
from ggmlgraph.generation.sampling import PENALISED, Sampling
from ggmlgraph.table.dialect import DIALECTS, WRITTEN
from ggmlgraph.training.config import TrainConfig

GROUPED = {"how": Sampling, "limits": Limits}  # arguments of `command` that are made of options named as their fields
PATH = click.Path(path_type=Path)
NEW_FILE = click.Path(path_type=Path, dir_okay=False)
SIZE = click.IntRange(1, 1 << 20)
SEEDS = click.IntRange(0, (1 << 64) - 1)
DRAWING, TRAINING = Sampling(), TrainConfig()
MOST_CTX = 512  # that `convert` takes by default, however far the model looks back


def option(*names: str, **settings: Any) -> click.Option:
    """As click.option."""
    return click.Option(names, **settings)


def defaulting(*names: str, default: Any, **settings: Any) -> click.Option:
    """An option whose help tells its default."""
    return click.Option(names, default=default, show_default=True, **settings)


def argument(name: str, metavar: str, **settings: Any) -> click.Argument:
    """As click.argument."""
    return click.Argument([name], metavar=metavar, **settings)


def command(name: str, *params: click.Parameter, short: str, help: str) -> click.Command:
    """One that imports the module of its name to run. short: its line in the list of commands."""
    return click.Command(name, params=list(params), short_help=short, help=help, callback=_work(name))


def group(name: str, *commands: click.Command, short: str) -> click.Group:
    """Commands under one name: the work of COMMAND is `COMMAND_command` in the module cli/NAME.py."""
    for each in commands:
        each.callback = _work(name, f"{each.name}_command")
    return click.Group(name, short_help=short, help=short, commands={each.name or "": each for each in commands})


def _work(name: str, function: str = "command") -> Callable[..., Any]:
    def work(**options: Any) -> Any:
        outputs.check(name, options)
        for group, kind in GROUPED.items():
            names = [field.name for field in fields(kind)]
            if options.keys() >= set(names):
                options[group] = kind(**{each: options.pop(each) for each in names})
        return getattr(import_module(f"ggmlgraph.cli.{name.replace('-', '_')}"), function)(**options)

    return work


# ---------------------------------------------------------------- what several commands take

MODEL = argument("path", "RUN|CHECKPOINT|GRAPH", type=PATH)
ANY_MODEL = argument("path", "RUN|CHECKPOINT|GRAPH|GGUF|FOLDER", type=PATH)
FIELDS = argument("fields", "[FIELD=VALUE]...", nargs=-1)
THREADS = option("--threads", type=int, help="[default: all processors]")
LOOKED_BACK = option("--ctx", type=SIZE, help="Tokens looked back on.  [default: as trained]")
EXPORTED_CTX = option("--ctx", type=SIZE, help="Tokens the model looks back on.  [default: the graph's]")
ADAPTERS = option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="X[:SCALE]",
    help="Adapters beside the model's weights: a PEFT folder, a GGUF file, a run; repeat for several, which add up.",
)
BATCH_AT_FIRST = defaulting("--batch", type=SIZE, default=16, help="Windows per batch; training may choose another.")
AS_JSON = option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON.")
MEMORY_LIMIT = option(
    "--memory-limit",
    type=Memory(),
    help="Most memory the training graph may take, such as 2G; to keep it, activations are computed again.  "
    "[default: what is free]",
)
PRECISION = defaulting(
    "--matmul-precision",
    type=click.Choice(["float32", "bf16"]),
    default=TRAINING.matmul_precision,
    help="bf16: matrix products round what they multiply to bfloat16 and add in float32; faster where the processor "
    "has AVX512-BF16.",
)
LIMITS = (
    defaulting(
        "--max-tensors", "n_tensors", type=SIZE, default=limits.DEFAULT.n_tensors,
        help="The most tensors to take from a file.",
    ),
    option(
        "--max-nbytes", "nbytes", type=Memory(), default=limits.DEFAULT.nbytes, show_default="1 TiB",
        help="The most bytes that all its tensors together may have.",
    ),
    option(
        "--max-flops", "flops", type=click.FloatRange(1), default=limits.DEFAULT.flops, show_default="1e15",
        help="The most operations that computing it once may take.",
    ),
)  # fmt: skip
SAMPLING = (
    defaulting("--temperature", type=float, default=DRAWING.temperature, help="0: always the likeliest token."),
    defaulting("--top-k", type=int, default=DRAWING.top_k, help="Draw among the K likeliest tokens; 0: all."),
    defaulting(
        "--top-p", type=float, default=DRAWING.top_p, help="Draw among the likeliest tokens of this total probability."
    ),
    defaulting(
        "--min-p", type=float, default=DRAWING.min_p,
        help="Draw among tokens at least this likely, measured by the likeliest.",
    ),
    defaulting(
        "--repeat-penalty", type=float, default=DRAWING.repeat_penalty,
        help=f"Divide the logits of the last {PENALISED} tokens by this; 1: do not.",
    ),
    defaulting("--seed", type=SEEDS, default=DRAWING.seed),
)  # fmt: skip


# ---------------------------------------------------------------- models and their files

MODELS = command(
    "models",
    argument("name", "[MODEL]", required=False),
    short="List models and their published sizes.",
    help="""List what `export` takes as MODEL: architectures and presets of published sizes.

    With MODEL (an architecture, a preset or FILE.py), only its presets, and the fields of its config that
    FIELD=VALUE sets.
    """,
)

EXPORT = command(
    "export",
    argument("name", "MODEL"),
    FIELDS,
    option("-o", "--output", type=NEW_FILE, help="The graph file to write."),
    option("--tokenizer", type=PATH, help="A sentencepiece model; it travels in the file."),
    BATCH_AT_FIRST,
    defaulting("--ctx", type=SIZE, default=64, help="Tokens per window; training may choose another."),
    defaulting("--seed", type=SEEDS, default=0, help="Of the weights."),
    defaulting(
        "--dialect", type=click.Choice(WRITTEN), default="v2", help="Which ggml the file is for; see `rewrite`."
    ),
    option("--print", "show", is_flag=True, help="Print the graph, one line per node."),
    short="Write a model as a graph file.",
    help="""Write MODEL as a ggml compute graph with fresh weights.

    MODEL is an architecture or a preset of `ggmlgraph models`, or FILE.py:FUNCTION; FIELD=VALUE sets a field of its
    config. Without --tokenizer a text is its bytes, and n_vocab is 256. n_vocab follows the tokenizer unless given.
    """,
)

CONVERT = command(
    "convert",
    argument("source", "SRC", type=PATH),
    FIELDS,
    option("-o", "--output", required=True, type=NEW_FILE, help="The graph file to write."),
    option("--model", "name", metavar="MODEL", help="Of tensors without a configuration: as `export` takes it."),
    option(
        "--checkpoint",
        type=PATH,
        metavar="DIR",
        help="Also keep the optimiser's state of a training run, for `train --init-from DIR`.",
    ),
    option(
        "--moment-order",
        "order",
        type=click.Choice(["left-to-right", "right-to-left", "flash-left-to-right", "flash-right-to-left"]),
        help="Of a GGUF checkpoint of llama.cpp's trainer: the evaluation order that it printed.",
    ),
    option(
        "--tokenizer",
        type=PATH,
        help="A sentencepiece model, tokenizer.json, vocab.json, tokenizer.bin, GGUF file or a folder with one.  "
        "[default: the checkpoint's]",
    ),
    option("--no-tokenizer", "without", is_flag=True, help="Convert the weights alone."),
    BATCH_AT_FIRST,
    option(
        "--ctx",
        type=SIZE,
        help=f"Tokens per window; training may choose another.  [default: the model's, at most {MOST_CTX}]",
    ),
    defaulting(
        "--dtype",
        type=click.Choice(["f32", "f16", "bf16"]),
        default="f32",
        help="Of matrices and tables in OUTPUT. Only f32 is trained.",
    ),
    option(
        "--frozen",
        is_flag=True,
        help="Keep half-precision and quantised matrices and tables as they are, not to be trained.",
    ),
    short="Write a checkpoint of another program as a graph file.",
    help="""Write a checkpoint of another program as a graph file with its weights.

    SRC is a Hugging Face folder, a Meta checkpoint (consolidated.00.pth and params.json), a GGUF file, a checkpoint of
    LitGPT, Lit-LLaMA, nanoGPT, llama2.c, llm.c or llama.cpp's old trainer, of the models that `ggmlgraph models` lists;
    or, with --model, a file of tensors only. Weights become float32, quantised ones too, unless --dtype or --frozen
    says otherwise. FIELD=VALUE sets a field of the model's config that SRC does not say. Nothing in SRC is run.
    """,
)

EXPORT_GGUF = command(
    "export-gguf",
    MODEL,
    option("-o", "--output", required=True, type=NEW_FILE, help="The GGUF file to write."),
    option(
        "--type",
        "kind",
        type=click.Choice(["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]),
        help="Of the matrices; vectors stay F32.  [default: what they are]",
    ),
    EXPORTED_CTX,
    option("--lora", "alone", is_flag=True, help="Write the adapters alone, which llama.cpp puts beside the base."),
    short="Write a model for llama.cpp.",
    help="""Write a model for llama.cpp, tokenizer included.

    Refused is what llama.cpp would load and get wrong.
    """,
)

EXPORT_HF = command(
    "export-hf",
    MODEL,
    option(
        "-o", "--output", required=True, type=click.Path(path_type=Path, file_okay=False), help="The folder to write."
    ),
    EXPORTED_CTX,
    option("--lora", "alone", is_flag=True, help="Write the adapters alone, as a folder of PEFT's."),
    short="Write a model for transformers.",
    help="Write a model as a folder that transformers loads: config, weights in float32, tokenizer.",
)

INSPECT = command(
    "inspect",
    ANY_MODEL,
    option("--nodes", is_flag=True, help="Also every node of the file's graph."),
    option("--gradient", is_flag=True, help="Also every node of the training graph: gradients and optimiser."),
    option("--batch", type=SIZE, help="Plan for this batch.  [default: the graph's]"),
    option("--ctx", type=SIZE, help="Plan for this context.  [default: the graph's]"),
    option("--dialect", type=click.Choice(list(DIALECTS)), help="Which ggml the file is of.  [default: found out]"),
    *LIMITS,
    short="Show what is in a graph file.",
    help="Show what is in a graph file: model, inputs, parameters, memory plan.",
)

DRAW = command(
    "draw",
    ANY_MODEL,
    option(
        "-o",
        "--output",
        required=True,
        type=NEW_FILE,
        help="The picture to write: its name ends in .svg, .html or .dot.",
    ),
    defaulting(
        "--view",
        type=click.Choice(["forward", "fused", "gradient"]),
        default="forward",
        help="forward: as the file has it; fused: as it runs; gradient: with the backward pass of training.",
    ),
    option("--plan", "memory", is_flag=True, help="Draw the program's memory over time instead, as .svg."),
    option("--batch", type=SIZE, help="At this batch.  [default: the graph's]"),
    option("--ctx", type=SIZE, help="At this context.  [default: the graph's]"),
    short="Draw a graph, or its memory.",
    help="""Draw a graph as boxes and arrows, or what its memory holds over time.

    Layers that are the same computation, which is checked wire by wire, are one block with the number of its copies;
    in .html a click unfolds it. Weights are written into the box of the operation that takes them.
    """,
)

REWRITE = command(
    "rewrite",
    argument("source", "IN", type=NEW_FILE),
    argument("target", "OUT", type=NEW_FILE),
    option("--dialect", required=True, type=click.Choice(WRITTEN), help="Which ggml OUT is for."),
    option(
        "--from",
        "source_dialect",
        type=click.Choice(list(DIALECTS)),
        help="Which ggml IN is of.  [default: found out]",
    ),
    *LIMITS,
    short="Write a graph file in another dialect of ggml's format.",
    help="""Write the graph file IN as OUT in another dialect of ggml's format, weights and all.

    v2 is the last ggml that reads graphs (2024-11-04), v2a the one in llama-cpp-python 0.3.1, v1 ggml-python 0.0.37.
    v1a to v1i, of 2023, are only read.
    """,
)


# ---------------------------------------------------------------- training

TRAIN = command(
    "train",
    argument("graph", "GRAPH", type=PATH),
    option(
        "--data",
        multiple=True,
        metavar="SOURCE",
        help="Text of any kind that `data prepare` reads, or a token store; repeat for several.  "
        "[default: the text the graph names]",
    ),
    option("--val-data", multiple=True, metavar="SOURCE", help="Validate on this.  [default: the last tenth]"),
    option(
        "--mix", multiple=True, metavar="NAME=WEIGHT:SOURCE", help="Instead of --data: one of several texts, by weight."
    ),
    option(
        "--proportions",
        type=click.Choice(["llama", "redpajama"]),
        help="Weights of the parts of --mix that have none: commoncrawl, c4, github, wikipedia, books, arxiv, "
        "stackexchange.",
    ),
    defaulting("-o", "--output", type=PATH, default=Path("run"), help="The run directory."),
    option(
        "--input",
        multiple=True,
        metavar="NAME=FILE.npy",
        help="Samples for an input of the graph, along the first axis, or a .npz with an array of its name; instead of "
        "text. Repeat for several inputs.",
    ),
    option("--targets", metavar="FILE.npy", help="Class numbers: the loss becomes the cross-entropy with them."),
    option(
        "--params",
        multiple=True,
        metavar="PATTERN",
        help="Names of the leafs to train, such as '*.weight'.  [default: those that the graph marks]",
    ),
    option(
        "--loss",
        metavar="NAME",
        help="The scalar to minimise or, with --targets, the logits.  "
        "[default: what the graph marks, or calls loss or logits]",
    ),
    option("--tokenizer", type=PATH, help="A sentencepiece model, if the graph has none."),
    defaulting("--steps", type=click.IntRange(1), default=TRAINING.steps, help="Optimiser steps."),
    option("--batch", type=SIZE, help="Windows per micro-batch.  [default: the graph's]"),
    defaulting(
        "--accumulate",
        type=SIZE,
        default=TRAINING.accumulate,
        help="Micro-batches per step: a batch of batch x accumulate in the memory of one.",
    ),
    option(
        "--slots",
        type=SIZE,
        help="Equal parts of the micro-batches, which the processes of mpirun or srun share; for any number, up to "
        "so many, a run has the same weights.  [default: --accumulate where there are several, else 1]",
    ),
    option("--ctx", type=SIZE, help="Tokens per window.  [default: the graph's]"),
    defaulting(
        "--optimizer",
        type=OptimizerType(),
        default=spelled(TRAINING.optimizer),
        help="What updates the weights, and its options where they are not as usual, such as lion:beta2=0.95.",
    ),
    option("--lr", type=float, help="Learning rate at its peak.  [default: the optimiser's usual one, AdamW's 0.001]"),
    option(
        "--lr-of",
        type=FactorType(),
        multiple=True,
        metavar="PATTERN=FACTOR",
        callback=by_pattern,
        help="Multiply the learning rate of parameters of such names, as in 'token_embd.*=5'; the first that matches "
        "counts. Repeat it.",
    ),
    option(
        "--decay-of",
        type=FactorType(),
        multiple=True,
        metavar="PATTERN=FACTOR",
        callback=by_pattern,
        help="Multiply the weight decay of parameters of such names, also of vectors, which else do not decay.",
    ),
    option("--freeze", multiple=True, metavar="PATTERN", help="Names of parameters to leave as they are."),
    option("--warmup", type=click.IntRange(0), help="Steps of linear warm-up.  [default: a tenth, at most 100]"),
    defaulting(
        "--schedule",
        type=click.Choice(["cosine", "linear", "constant"]),
        default=TRAINING.schedule,
        help="After the warm-up; cosine and linear end at lr/10.",
    ),
    option("--weight-decay", type=float, help="Of what has two axes or more.  [default: the optimiser's, AdamW's 0.1]"),
    defaulting("--clip", type=float, default=TRAINING.clip, help="Largest gradient norm; 0: any."),
    defaulting("--clip-value", type=float, default=TRAINING.clip_value, help="Largest number of a gradient; 0: any."),
    defaulting(
        "--ema",
        type=click.FloatRange(0, 1, max_open=True),
        default=TRAINING.ema,
        help="Keep an exponential average of the weights, of which so much stays in a step, such as 0.999: what is "
        "evaluated, sampled and saved. 0: none.",
    ),
    THREADS,
    PRECISION,
    MEMORY_LIMIT,
    defaulting("--seed", type=SEEDS, default=TRAINING.seed, help="Of the data's order and of samples."),
    defaulting(
        "--eval-every",
        type=click.IntRange(0),
        default=TRAINING.eval_every,
        help="Steps between validations; 0: at the end only.",
    ),
    defaulting(
        "--sample-every",
        type=click.IntRange(0),
        default=TRAINING.sample_every,
        help="Steps between samples; 0: at the end only.",
    ),
    defaulting(
        "--save-every",
        type=click.IntRange(0),
        default=TRAINING.save_every,
        help="Steps between checkpoints; 0: at the end only.",
    ),
    defaulting(
        "--keep",
        type=click.IntRange(1),
        default=TRAINING.keep,
        help="Checkpoints to keep, the newest; besides the one with the least validation loss, best.",
    ),
    option(
        "--keep-every",
        type=click.IntRange(0),
        default=TRAINING.keep_every,
        metavar="STEPS",
        help="Keep the checkpoints of multiples of so many steps for good.",
    ),
    defaulting(
        "--spikes",
        type=click.Choice(["tell", "rollback"]),
        default=TRAINING.spikes,
        help="Losses that leap, several in a row: say so, or go back to the last checkpoint and past their data.",
    ),
    defaulting(
        "--layers-every",
        type=click.IntRange(0),
        default=TRAINING.layers_every,
        help="Steps between looks at the sizes of layers' weights, gradients and updates, and at memory; 0: none.",
    ),
    option("--tensorboard", is_flag=True, help="Write the metrics for TensorBoard too, into the run's `tensorboard`."),
    option("--prompt", help="What samples begin with."),
    defaulting(
        "--predict", type=click.IntRange(0), default=TRAINING.predict, help="Tokens of a sample; 0: no samples."
    ),
    option(
        "--init-from",
        type=PATH,
        metavar="DIR",
        help="Begin a new run with the weights and the optimiser's state of a checkpoint.",
    ),
    option(
        "--resume",
        metavar="auto|DIR",
        help="Go on from the latest checkpoint in -o, if there is one, or from a checkpoint DIR. Options not given "
        "again are those of the run.",
    ),
    *LIMITS,
    short="Train a graph file on text.",
    help="""Train GRAPH on text, or any graph of ggml's on numpy files, and keep everything in a run directory.

    Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 finish the step, save a checkpoint and say how to go on; a second Ctrl-C or
    SIGTERM ends at once.
    """,
)

FINETUNE = command(
    "finetune",
    argument("base", "BASE", type=PATH),
    FIELDS,
    option("--lora", "adapted", is_flag=True, help="Train low-rank adapters, with these FIELDs."),
    option(
        "--train",
        "train_words",
        multiple=True,
        metavar="WORD",
        help="Also train these parameters in full: a name, its end, or a pattern such as '*.bias'.  "
        "[default: with adapters none, else all]",
    ),
    option("--adapter", help="Begin with the adapters of a PEFT folder, a GGUF file or a run, instead of --lora."),
    option("--last", type=SIZE, help="Adapt, or train, only in so many of the last layers."),
    option("--lr", type=float, help="Learning rate at its peak.  [default: 2e-4 with adapters, else 2e-5]"),
    defaulting("--weight-decay", type=float, default=0.0, help="Of matrices."),
    *(p for p in TRAIN.params if p.name not in (
        "graph", "input", "targets", "params", "loss", "lr", "weight_decay", "init_from", "resume")),
    short="Train adapters, or a part, of a model on text.",
    help="""Train low-rank adapters of BASE, or some of its parameters, on text.

    BASE is a graph file, a run, a checkpoint, or what `convert` takes; with --lora its half-precision and quantised
    matrices stay as they are. The FIELDs, with their defaults: r=16 alpha=32 targets=all-linear, which are all matrices
    but the head, or attn_q,attn_v,...; exclude=WORD,...; layers=0,4-7; dropout=0; rslora=false; init=kaiming or
    gaussian; ranks=WORD:RANK,... and alphas=WORD:ALPHA,... for some of them.

    The run directory is that of `train`, which goes on with it: `train RUN/graph.bin -o RUN --resume auto`.
    """,
)  # fmt: skip

MERGE = command(
    "merge",
    ANY_MODEL,
    ADAPTERS,
    option("-o", "--output", required=True, type=NEW_FILE, help="The graph file to write."),
    short="Write a graph whose weights have their adapters in them.",
    help="""Write the graph of a fine-tuning run without its adapters: each weight W becomes W + s B A, in float32.

    Quantised weights are dequantised, since that is what was trained on. `export-gguf` and `export-hf` take a run with
    adapters as it is, and merge it so.
    """,
)

BENCH = command(
    "bench",
    argument("graph", "GRAPH", type=PATH),
    option("--batch", type=SIZE, help="Windows per step.  [default: the graph's]"),
    option("--ctx", type=SIZE, help="Tokens per window.  [default: the graph's]"),
    THREADS,
    MEMORY_LIMIT,
    PRECISION,
    *LIMITS,
    defaulting("--steps", type=click.IntRange(1), default=10, help="Steps that are measured."),
    option("--profile", is_flag=True, help="Show the time by kind of node."),
    AS_JSON,
    short="Measure training steps of a graph file.",
    help="""Run training steps of GRAPH on random tokens and measure them.

    The peak is measured between the steps, by multiply-adds that stay in registers; the clock of a shared machine may
    change from one second to the next.
    """,
)


# ---------------------------------------------------------------- text out

REPORT = command(
    "report",
    argument("runs", "RUN...", type=PATH, nargs=-1, required=True),
    option("-o", "--output", required=True, type=NEW_FILE, help="The page to write."),
    short="Write a page that shows a run, or compares several.",
    help="""Write one HTML file that shows a run: curves, events, samples, and what made it; of several, what differs.

    The file loads nothing from elsewhere, and its first view needs no script.
    """,
)

DASH = command(
    "dash",
    argument("runs", "RUN...", type=PATH, nargs=-1, required=True),
    defaulting(
        "--port", type=click.IntRange(0, 65535), default=8265, help="Of this machine alone; 0: any that is free."
    ),
    short="Serve that page while the run goes on.",
    help="""Serve the page of `report` to browsers on this machine; it follows the run while it goes on.

    Over ssh: `ssh -L 8265:localhost:8265 MACHINE`.
    """,
)

METRICS = command(
    "metrics",
    argument("run", "RUN", type=PATH),
    option("--csv", "output", metavar="FILE", type=NEW_FILE, help="A table to write; - is standard output."),
    option("--tensorboard", metavar="DIR", type=PATH, help="A folder for TensorBoard to write."),
    option("--trackio", metavar="PROJECT", help="A project of trackio to put the run into; it must be new."),
    short="Write a run's metrics for other programs.",
    help="""Write the metrics of a run as a table, or for TensorBoard or trackio; `metrics.jsonl` stays the truth.

    A column is empty, or a number missing, where a step has none. `train --tensorboard` writes while it trains.
    """,
)

GENERATE = command(
    "generate",
    ANY_MODEL,
    ADAPTERS,
    option("-p", "--prompt", "prompts", multiple=True, help="The text to continue. Several: together, then in turn."),
    option("--prompts", "file", type=PATH, help="A file with a prompt on each line."),
    defaulting("-n", "--predict", type=click.IntRange(0), default=256, help="Tokens to generate."),
    option("--stop", multiple=True, help="End before this text. May be given several times."),
    *SAMPLING,
    LOOKED_BACK,
    THREADS,
    *LIMITS,
    short="Continue a text with a trained model.",
    help="Continue a text with the model in a run directory (its latest checkpoint), a checkpoint, or a graph file.",
)

CHAT = command(
    "chat",
    ANY_MODEL,
    ADAPTERS,
    option("--system", help="What the model is told before the first message."),
    option("--template", "template_file", type=PATH, help="A chat template (Jinja2).  [default: the model's]"),
    defaulting("-n", "--predict", type=click.IntRange(1), default=1024, help="Tokens of an answer."),
    option("--stop", multiple=True, help="End an answer before this text. May be given several times."),
    *SAMPLING,
    LOOKED_BACK,
    THREADS,
    *LIMITS,
    short="Talk with a model.",
    help="Talk with a model: each line is a message. Ctrl-C stops an answer, Ctrl-D ends the conversation.",
)

EVAL = command(
    "eval",
    ANY_MODEL,
    ADAPTERS,
    option("--text", help="Perplexity on this UTF-8 file (or builtin:pydoc)."),
    option("--choices", type=PATH, help='Accuracy on lines {"prompt": ..., "choices": [...], "answer": number}.'),
    option("--ctx", type=SIZE, help="Tokens of a window.  [default: as trained]"),
    option("--stride", type=click.IntRange(1), help="Windows begin every so many tokens and score what is new."),
    AS_JSON,
    THREADS,
    *LIMITS,
    short="Measure how well a model predicts a text, or picks the right answers.",
    help="Measure a model: perplexity on a text, as llama.cpp defines it, or accuracy on multiple-choice questions.",
)


# ---------------------------------------------------------------- the rest

SPLIT = defaulting(
    "--split",
    type=click.Choice(["file", "blank-line", "line"]),
    default="file",
    help="What of a plain text is a document: the file, what blank lines part (CC-100), or a line.",
)
FIELD = option("--field", help="Of JSON lines or parquet: the text's name.  [default: text, or what it must be]")
MAX_BAD = defaulting(
    "--max-bad",
    type=click.IntRange(0),
    default=0,
    help="Pass over so many records without text, places that are not UTF-8 and damaged files, and tell them.",
)
SOURCES = argument("sources", "SOURCE...", nargs=-1, required=True)
TOKENIZER_FILE = option("--tokenizer", type=PATH, required=True, help="A sentencepiece model, tokenizer.json, …")

TOKENIZER = group(
    "tokenizer",
    command(
        "train",
        SOURCES,
        option("-o", "--output", type=NEW_FILE, required=True, help="The sentencepiece model to write."),
        defaulting("--n-vocab", type=click.IntRange(1), default=4096, help="Number of ids."),
        defaulting("--model", type=click.Choice(["bpe", "unigram"]), default="bpe"),
        option("--special", multiple=True, help="A control token, such as <|end|>. May be given several times."),
        defaulting(
            "--character-coverage",
            type=click.FloatRange(0.5, 1.0),
            default=0.9995,
            help="Share of the text's characters that get ids; the others are spelt as bytes. 1: all, and no bytes.",
        ),
        SPLIT,
        FIELD,
        MAX_BAD,
        short="Train a sentencepiece model.",
        help="Train a sentencepiece model on what `data prepare` reads too. Every text round-trips through it.",
    ),
    command(
        "encode",
        TOKENIZER_FILE,
        argument("sources", "[SOURCE]...", nargs=-1),
        SPLIT,
        FIELD,
        short="Print the ids of texts.",
        help="Print the ids of each document of the sources, or of standard input, as a line.",
    ),
    command(
        "decode",
        TOKENIZER_FILE,
        argument("ids", "[ID]...", nargs=-1),
        short="Print the text of ids.",
        help="Print the text of ids, given or on standard input.",
    ),
    command(
        "stats",
        TOKENIZER_FILE,
        SOURCES,
        SPLIT,
        FIELD,
        AS_JSON,
        short="Measure how a tokenizer spells texts.",
        help="Measure how a tokenizer spells texts: tokens and bytes a character, ids used, characters without an id.",
    ),
    short="Train a tokenizer, use it, measure it.",
)

DATA = group(
    "data",
    command(
        "prepare",
        SOURCES,
        option("-o", "--output", type=PATH, required=True, help="The token store, a folder, to write."),
        option("--tokenizer", type=PATH, help="A sentencepiece model, tokenizer.json, …  [default: bytes]"),
        SPLIT,
        FIELD,
        option("--end", metavar="TOKEN|none", help="After each document.  [default: the tokenizer's end of text]"),
        option("--deduplicate", is_flag=True, help="Leave out documents of the same words as an earlier one."),
        MAX_BAD,
        option("--processes", type=click.IntRange(1, 256), help="[default: all processors]"),
        short="Make a token store of texts.",
        help="""Make a token store of texts, for `train --data`.

        A SOURCE is a file, a folder, a pattern such as 'wiki/*.jsonl.zst', - for standard input, or builtin:NAME: text,
        JSON lines or parquet, plain or compressed by gzip, xz or zstd. What was killed goes on when it is called again.
        """,
    ),
    command(
        "stats",
        argument("path", "STORE"),
        option("--verify", is_flag=True, help="Read all of it, and compare it with its sums."),
        AS_JSON,
        short="Show what a token store has.",
        help="Show what a token store has; also one of Megatron, llm.c, datatrove or nanoGPT.",
    ),
    command(
        "show",
        argument("path", "STORE"),
        defaulting("--first", type=int, default=1, help="The first document to show."),
        defaulting("-n", "n", type=click.IntRange(1), default=1, help="How many."),
        option("--ids", is_flag=True, help="Show ids, not text."),
        short="Show documents of a token store.",
        help="Show documents of a token store.",
    ),
    short="Make token stores of texts.",
)

DOCTOR = command(
    "doctor",
    short="Show what this machine offers and which versions are installed.",
    help="Show what this machine offers and which versions are installed.",
)

DEMO = command(
    "demo",
    defaulting("-o", "--output", type=PATH, default=Path("run"), help="The run directory."),
    short="Train a small LLaMA on Python's own documentation.",
    help="""Train a small LLaMA from nothing on Python's own documentation, in about three minutes on two processors.

    A demo that was interrupted goes on where it was.
    """,
)

COMMANDS = {
    each.name: each
    for each in (
        MODELS, EXPORT, CONVERT, EXPORT_GGUF, EXPORT_HF, TRAIN, FINETUNE, MERGE, REPORT, DASH, METRICS, GENERATE, CHAT,
        EVAL, INSPECT, DRAW, REWRITE, BENCH, DATA, TOKENIZER, DOCTOR, DEMO,
    )
}  # fmt: skip
