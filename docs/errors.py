"""Print docs/errors.md: wrong programs, and what each is told. Run by `make docs`; a test keeps the page current."""

from __future__ import annotations

import contextlib
import io
import linecache
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ggmlgraph as gg
from ggmlgraph.cli.main import run

HEAD = """# What a slip is told

Each program is traced as `model.py` at batch 2 and ctx 8, with a config of one field, `scale`, unless it is a command;
below it stands what it prints. Made by `make docs`.
"""
BEGIN = """import ggmlgraph as gg

def loss(p, tokens, targets, c):
    x = p.embedding("token_embd", tokens, 256, 16)
"""
END = """    return p.cross_entropy(p.linear("output", x, 256), targets)
"""


@dataclass(frozen=True)
class Config:
    """That of the programs."""

    scale: float = 1.0


PROGRAMS = {  # what comes between BEGIN and END
    "A product of sizes that do not fit": 'x = gg.mul_mat(p("w", 4, 5), x)',
    "A sum of sizes that do not fit": 'x = x + p("bias", 12)',
    "A size that merely divides": 'x = x * p("gain", 4)',
    "A reshape to another number of elements": "x = x.reshape(2, 8, 3, 5)",
    "A product with @ that does not fit": 'x = x @ p("w", 12, 16)',
    "Heads that do not divide the width": "x = x.reshape(*x.shape[:2], 3, 16 // 3)",
    "A permutation of other axes": "x = x.permute(0, 1)",
    "A slice beyond the end": "x = x[:, :, 10:20]",
    "Numbers joined along an axis that is not there": "x = gg.concat([x, x], axis=5)",
    "A condition on values": "x = x * 2 if x else x",
    "A comparison taken for a truth": "x = x if x == 0 else gg.silu(x)",
    "Arithmetic of ids": "x = x * (tokens == 0)[..., None]",
    "A number out of a tensor": "x = x * float(x.sum())",
    "A loop over a tensor": "for row in x:\n        pass",
    "A number where a tensor is due": "x = gg.silu(3)",
    "An array where a tensor is due": "import numpy as np\n    x = x + np.ones(16)",
    "A helper that returned nothing": "def norm(x):\n        gg.rms_norm(x, 1e-5)\n    x = gg.silu(norm(x))",
    "A helper that returned nothing, and is asked for more": "y = [].append(x)\n    x = y.reshape(2, 128)",
    "An argument that is missing": "x = gg.rms_norm(x)",
    "A layer without one of its arguments": 'x = p.linear("up", x)',
    "An argument that is misspelt": 'x = p.linear("up", x, 16, bais=True)',
    "An argument of another kind": 'x = gg.softmax(x, "last")',
    "Nothing to join": "x = gg.concat([])",
    "A method that others have": "x = x.transpose(1, 2)",
    "A function taken for a method": "x = x.exp()",
    "A function of numpy's": "import numpy as np\n    x = np.tanh(x)",
    "A method of parameters that is misspelt": 'x = p.liner("up", x, 16)',
    "A shape of a parameter as a tuple": 'x = x @ p("w", (16, 16))',
    "Writing into a tensor": "x[:, 0] = 0",
    "A field of the config that is misspelt": "x = x * c.scal",
    "A name that is not there": "x = gg.silu(h)",
    "A parameter of another shape": 'x = p.linear("up", x, 16)\n    x = p.linear("up", x, 24)',
    "A parameter declared twice": 'x = p.linear("up", x, 16)\n    x = p.linear("up", x, 16)',
    "A parameter whose size depends on the context": 'x = x + p("places", x.shape[1], 16)',
    "An initialiser that is none": 'x = x * p("gain", 16, init=0.5)',
    "A rate that is none": "x = gg.dropout(x, 2)",
    "An op that ggml has not": "x = gg.swiglu(x, x)",
    "A name that is wrong": "x = gg.rms_nrm(x, 1e-5)",
    "A model that returns nothing": None,
}
COMMANDS = {
    "A field of a config that is misspelt": ["export", "llama", "n_layre=4", "-o", "g.bin"],
    "A head size that does not divide": ["export", "llama", "n_embd=30", "n_head=4", "-o", "g.bin"],
    "A file that is no graph": ["inspect", "model.py"],
    "A model that is not there": ["export", "lama", "-o", "g.bin"],
}


def page() -> Iterator[str]:
    """The lines of the page."""
    yield HEAD
    for title, slip in PROGRAMS.items():
        source = BEGIN + ("    x = gg.silu(x)\n" if slip is None else f"    {slip}\n{END}")
        shown = source.removeprefix(BEGIN).removesuffix(END) if slip else source.removeprefix(BEGIN)
        yield from _entry(title, "python", shown, traced(source))
    for title, words in COMMANDS.items():
        yield from _entry(title, "", f"$ ggmlgraph {' '.join(words)}", commanded(words))


def _entry(title: str, language: str, program: str, told: str) -> Iterator[str]:
    lines = [line.removeprefix("    ") for line in program.rstrip("\n").split("\n")]
    yield "\n".join((f"## {title}\n", f"```{language}", *lines, "```", "", "```", told, "```", ""))


def traced(source: str) -> str:
    """What a model of that source is told."""
    linecache.cache["model.py"] = (len(source), None, source.splitlines(keepends=True), "model.py")
    names: dict[str, object] = {}
    exec(compile(source, "model.py", "exec"), names)
    try:
        gg.trace(names["loss"], Config(), batch=2, ctx=8)  # type: ignore[arg-type]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError(f"nothing was wrong with {source}")


def commanded(words: list[str]) -> str:
    """What a command line is told, in a folder where model.py lies."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(said), contextlib.chdir(folder):
        Path("model.py").write_text(BEGIN + END)
        assert run(words) != 0, words
    return said.getvalue().strip()


if __name__ == "__main__":
    print("\n".join(page()), end="")
