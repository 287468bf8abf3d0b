"""Command lines of all kinds: every option at its edges, every file replaced by every other kind of file.

`trial` runs one in this process and says what is wrong with how it ended: a status that is not documented, more than
one line of error, a fault of our own, a character that steers a terminal, or no end. Used by test_any_command_line.py
and, as long as one likes:

    python tests/cli/commandlines.py CALLS [SEED]
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np

from ggmlgraph.cli import main

TINY = ["n_embd=16", "n_head=2", "n_layer=1", "n_ff=24"]
TEXT = "the quick brown fox jumps over the lazy dog\n" * 20
LIMIT_S = 20  # of one call
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
MODEL = """
def loss(p, tokens, targets, c):
    x = p.embedding("e", tokens, 256, 4)
    return p.cross_entropy(p.linear("o", x, 256), targets)
"""


def make_files(folder: Path) -> dict[str, str]:
    """A file of every kind there is, by kind; paths relative to `folder`, which is the working directory."""
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    Path("text.txt").write_text(TEXT)
    for line in (
        ["export", "llama", *TINY, "--batch", "2", "--ctx", "8", "-o", "graph.bin"],
        ["rewrite", "graph.bin", "graph.v1", "--dialect", "v1"],
        ["tokenizer", "train", "text.txt", "--n-vocab", "290", "-o", "spm.model"],
        ["train", "graph.bin", "--data", "text.txt", "--steps", "1", "--predict", "0", "--threads", "1", "-o", "run"],
        ["export-gguf", "graph.bin", "-o", "model.gguf"],
        ["export-hf", "graph.bin", "-o", "hf"],
    ):
        with contextlib.redirect_stdout(io.StringIO()):
            assert main.run(line) == 0, line
    found = {
        "graph": "graph.bin", "graph of v1": "graph.v1", "run": "run", "checkpoint": "run/step_000001",
        "gguf": "model.gguf", "hf folder": "hf", "safetensors": "hf/model.safetensors", "config": "hf/config.json",
        "tokenizer": "spm.model", "text": "text.txt", "tokens": str(*Path("run/tokens").iterdir()),
        "metrics": "run/metrics.jsonl", "missing": "missing", "below a file": "text.txt/x", "": "", "dash": "-",
        "builtin": "builtin:sine", "no builtin": "builtin:x", "long": "x" * 5000, "null": "/dev/null", "nul": "a\0b",
        "not utf-8": os.fsdecode(b"na\xffme.txt"), "escape": "\x1b[31m\x07.txt",
    }  # fmt: skip
    for name in ("not utf-8", "escape"):
        Path(found[name]).write_text(TEXT)
    contents: dict[str, bytes] = {
        "empty": b"", "zeros": bytes(4096), "noise": random.Random(0).randbytes(4096), "binary text": b"a\xff\x00" * 99,
        "model.py": MODEL.encode(), "wrong.py": b"def loss(p): return p.x\n", "exit.py": b"import sys; sys.exit(3)\n",
        "random.py": MODEL.encode(), "syntax.py": b"def (:\n", "lines.jsonl": b'{"text": "a"}\n' * 9,
        "list.json": b"[1, 2]", "questions.jsonl": b'{"prompt": "a", "choices": ["b", "c"], "answer": 0}\n',
        "cut.bin": Path("graph.bin").read_bytes()[:-9], "cut.gguf": Path("model.gguf").read_bytes()[:-9],
        "template.jinja": b"{% for m in messages %}{{ m.content }}{% endfor %}", "bad.jinja": b"{% for",
    }  # fmt: skip
    for name, content in contents.items():
        Path(name).write_bytes(content)
    np.save("numbers.npy", np.arange(160, dtype=np.int32).reshape(20, 8))
    np.save("floats.npy", np.ones((20, 8), np.float32))
    np.save("objects.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with zipfile.ZipFile("weights.pth", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
    with Path("sparse").open("wb") as file:
        file.write(struct.pack("<II", 0x67676D6C, 2))
        file.truncate(1 << 40)
    os.mkfifo("fifo")
    Path("loop").symlink_to("loop")
    Path("secret").touch(0o000)
    for name in (
        *contents,
        "numbers.npy",
        "floats.npy",
        "objects.npy",
        "weights.pth",
        "sparse",
        "fifo",
        "loop",
        "secret",
    ):
        found[name] = name
    Path("folder").mkdir()
    return found | {"folder": "folder"}


# ---------------------------------------------------------------- command lines

FILE, NEW = "FILE", "NEW"  # stand for any file, and for an output
LINES = [  # that are short to run; what follows is changed
    ["inspect", FILE], ["inspect", FILE, "--nodes"], ["draw", FILE, "-o", f"{NEW}.svg"],
    ["draw", FILE, "-o", f"{NEW}.html", "--view", "gradient"], ["draw", "graph.bin", "-o", FILE],
    ["metrics", FILE, "--csv", NEW], ["metrics", "run"], ["metrics", "run", "--csv", "-"],
    ["report", FILE, "-o", NEW], ["report", "run", FILE, "-o", NEW], ["report", "run", "-o", FILE],
    ["rewrite", FILE, NEW, "--dialect", "v1"],
    ["train", FILE, "--data", "text.txt", "-o", NEW], ["train", "graph.bin", "--data", FILE, "-o", NEW],
    ["train", "graph.bin", "--input", f"tokens={FILE}", "-o", NEW],
    ["train", "graph.bin", "--targets", FILE, "-o", NEW],
    ["train", "graph.bin", "--input", "tokens=numbers.npy", "--input", f"targets={FILE}", "-o", NEW],
    ["train", "graph.bin", "--data", "text.txt", "--tokenizer", FILE, "-o", NEW],
    ["train", "graph.bin", "--data", "text.txt", "--init-from", FILE, "-o", NEW],
    ["train", "graph.bin", "--data", "text.txt", "--resume", FILE, "-o", NEW],
    ["finetune", FILE, "--lora", "r=2", "--data", "text.txt", "-o", NEW], ["merge", FILE, "-o", NEW],
    ["train", "graph.bin", "--data", "text.txt", "-o", FILE], ["generate", FILE, "-p", "a"],
    ["generate", "graph.bin", "--prompts", FILE], ["chat", FILE], ["chat", "graph.bin", "--template", FILE],
    ["eval", FILE, "--text", "text.txt"], ["eval", "graph.bin", "--text", FILE],
    ["eval", "graph.bin", "--choices", FILE],
    ["bench", FILE, "--steps", "1"], ["convert", FILE, "-o", NEW], ["convert", "hf", "--tokenizer", FILE, "-o", NEW],
    ["convert", FILE, "--model", "llama", "-o", NEW], ["convert", "hf", "-o", FILE], ["export", FILE, "-o", NEW],
    ["export", f"{FILE}:loss", "-o", NEW], ["export", "llama", *TINY, "--tokenizer", FILE, "-o", NEW],
    ["export", "llama", *TINY, "-o", FILE], ["models", FILE], ["export-gguf", FILE, "-o", NEW],
    ["export-gguf", "graph.bin", "-o", FILE], ["export-hf", FILE, "-o", NEW], ["export-hf", "graph.bin", "-o", FILE],
    ["train", "graph.bin", "--data", "text.txt", "--val-data", FILE, "-o", NEW],
    ["train", "graph.bin", "--mix", f"a=1:{FILE}", "--mix", "b=2:text.txt", "-o", NEW],
    ["data", "prepare", FILE, "-o", NEW], ["data", "prepare", "text.txt", "--tokenizer", FILE, "-o", NEW],
    ["data", "prepare", "text.txt", "-o", FILE], ["data", "stats", FILE], ["data", "stats", FILE, "--verify"],
    ["data", "show", FILE], ["tokenizer", "encode", FILE, "--tokenizer", "spm.model"],
    ["tokenizer", "stats", FILE, "--tokenizer", "spm.model"], ["tokenizer", "encode", "text.txt", "--tokenizer", FILE],
    ["tokenizer", "decode", FILE, "--tokenizer", "spm.model"],
    ["tokenizer", "train", FILE, "-o", NEW], ["tokenizer", "train", "text.txt", "--n-vocab", "290", "-o", FILE],
]  # fmt: skip
SHORT = {"train": ["--steps", "1", "--predict", "1", "--threads", "1"],
         "finetune": ["--steps", "1", "--predict", "1", "--threads", "1"], "generate": ["-n", "2", "--threads", "1"],
         "chat": ["-n", "2", "--threads", "1"], "eval": ["--threads", "1"], "bench": ["--threads", "1"]}  # fmt: skip
LONG = {
    "--steps",
    "-n",
    "--predict",
    "--accumulate",
    "--batch",
    "--ctx",
    "--threads",
    "--n-vocab",
}  # not for large values
EDGES = ("0", "1", "-1", "2", "", "x", "nan", "inf", "-inf", "1.5", "1e-300", "\x1b[31m", "0x10", "٣", "None", "a b")
LARGE = (str(1 << 20), str((1 << 20) + 1), str(1 << 63), str(1 << 64), "1e308", "9" * 400)
FIELDS = (
    "n_layer",
    "n_head",
    "n_embd",
    "n_vocab",
    "norm_eps",
    "tied",
    "rope_scaling",
    "rope_factor",
    "head_dim",
    "x",
    "",
)


WRITES_LONG = "head_dim"  # a large one is no error: the file is


def command_lines(kinds: dict[str, str], seed: int) -> Iterator[list[str]]:
    """Without end: each kind of file in each place, then options at their edges, in a random order."""
    rng = random.Random(seed)
    every = [(line, kind) for line in LINES for kind in kinds]
    rng.shuffle(every)
    for line, kind in every:
        yield _filled(line, kinds[kind], rng)
        for _ in range(2):
            yield _with_option(rng, kinds)
    while True:
        yield _with_option(rng, kinds)


def _filled(line: list[str], file: str, rng: random.Random) -> list[str]:
    words = [word.replace(FILE, file).replace(NEW, f"out{rng.randrange(1 << 30)}") for word in line]
    return [*words, *(SHORT.get(line[0], []))]


def _with_option(rng: random.Random, kinds: dict[str, str]) -> list[str]:
    """A command that would run, and options of it with values that may make no sense."""
    line = rng.choice(LINES)
    places = {"eval": "graph.bin", "convert": "hf", "models": "llama", "export": "llama", "tokenizer": "text.txt"}
    words = _filled(line, places.get(line[0], "graph.bin"), rng)
    command = main.COMMANDS[line[0]]
    if isinstance(command, click.Group):
        command = command.commands[line[1]]
    values: Sequence[Any]
    for param in rng.sample(command.params, min(len(command.params), rng.choice((1, 1, 2)))):
        if not isinstance(param, click.Option):
            field = rng.choice(FIELDS)
            values = EDGES if field == WRITES_LONG else (*EDGES, *LARGE)
            words += [f"{field}={rng.choice(values)}"] if param.name == "fields" else []
            continue
        name = rng.choice(param.opts)
        large = () if LONG & set(param.opts) else LARGE
        values = [*EDGES, *large, *rng.sample(list(kinds.values()), 2)]
        if isinstance(param.type, click.Choice):
            values = [*values, *param.type.choices]
        words += [name, *([] if param.is_flag else [str(rng.choice(values)) for _ in range(param.nargs)])]
    return words


# ---------------------------------------------------------------- how they end


class TooLongError(BaseException):
    """The call has not ended in time."""


def _too_long(*_: object) -> None:
    raise TooLongError


def trial(words: list[str]) -> str | None:
    """What is wrong with how a command line ended; None if nothing is."""
    out, err = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT_S)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch("sys.stdin", io.StringIO("a\n")),
        ):
            status = main.run(words)
    except TooLongError:
        return f"no end within {LIMIT_S} s"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    said = err.getvalue()
    if status not in (0, 1, 2):
        return f"status {status}"
    if "a fault of ggmlgraph" in said or "Traceback" in said:
        return said[:1000]
    errors = [line for line in said.splitlines() if line.startswith("ggmlgraph: error: ")]
    if len(errors) != (status != 0):
        return f"status {status} with {len(errors)} lines of error: {said[:300]}"
    if found := STEERING.search(said + ("" if words[0] in ("generate", "chat") else out.getvalue())):
        return f"the character {found[0]!r} is shown: {(said + out.getvalue())[:300]!r}"
    return None


def try_lines(n: int, seed: int, folder: Path, *, seconds: float = float("inf")) -> tuple[Counter[str], list[str]]:
    """Calls by command and status of n command lines, and what was wrong with any."""
    kinds, calls, wrong = make_files(folder / "files"), Counter[str](), []
    pristine = shutil.copytree(folder / "files", folder / "pristine", symlinks=True, ignore=_special)
    end = time.monotonic() + seconds
    for words, _ in zip(command_lines(kinds, seed), range(n), strict=False):
        if time.monotonic() > end:
            break
        calls[words[0]] += 1
        if (reason := trial(words)) is not None:
            wrong.append(f"{words!r}: {reason}")
        _restore(pristine, folder / "files")
    return calls, wrong


def _special(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name in ("fifo", "loop", "secret", "sparse")]


def _restore(pristine: Path, folder: Path) -> None:
    """Outputs go, inputs that were taken for outputs come back."""
    for path in folder.iterdir():
        if path.name.startswith("out"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in pristine.rglob("*"):
        to = folder / path.relative_to(pristine)
        if path.is_file() and not path.is_symlink():
            same = to.is_file() and not to.is_symlink() and to.stat().st_size == path.stat().st_size
            if not same:
                if to.is_dir() and not to.is_symlink():
                    shutil.rmtree(to)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, to)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns()
        calls, wrong = try_lines(int(sys.argv[1]), seed, Path(temporary))
        os.chdir("/")
    print("\n".join(wrong))
    print(f"{calls.total()} calls, {len(wrong)} wrong; {json.dumps(dict(calls.most_common()))}")
    sys.exit(bool(wrong))
