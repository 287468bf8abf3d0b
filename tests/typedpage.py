"""A page of right and wrong uses, as type checkers see it. Used by test_surface.py (mypy) and peers/test_pyright.py."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

RIGHT = """
import numpy as np

import ggmlgraph as gg


def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: object) -> gg.Tensor:
    x = p.embedding("e", tokens, 256, 8)
    x = gg.silu(gg.rms_norm(x, 1e-5)) * 2.0
    y = 1 - x[..., 0] / 2
    return p.cross_entropy(p.linear("o", x, 256), targets) + gg.mean(y)


def batch(step: int) -> dict[str, object]:
    return {"x": np.zeros(3), "y": [step]}


graph: gg.Graph = gg.trace(loss, None)
try:
    graph.save("g.bin")
except gg.ShapeError as error:
    print(error)
done = gg.Trainer(graph, "run", data={"x": np.zeros(3), "y": "y.npy"}, steps=3, lr=1e-3, optimizer=gg.SGD()).run()
print(done.finished, done.history["loss"][-1])
gg.Trainer("g.bin", data=["a.txt", "b.txt"], tell=None, schedule="linear").run()
gg.Trainer("g.bin", data=batch, resume="auto").run()
with gg.Runtime(graph, threads=2) as rt, gg.load("run") as model:
    print(rt.weights()["o.weight"].shape, model.tokenizer.encode("a"), gg.generate(model, "a", 3))
"""


class Wrong(NamedTuple):
    """A line, and what is said of it."""

    line: str
    mypy: str
    pyright: str


WRONG = (
    Wrong("gg.nosuch", 'Module has no attribute "nosuch"', '"nosuch" is not a known attribute of module'),
    Wrong("gg.adamw", 'Module has no attribute "adamw"', '"adamw" is not a known attribute of module'),
    Wrong(
        "gg.rms_norm()",
        'Missing positional arguments "a", "eps" in call to "rms_norm"',
        'Arguments missing for parameters "a", "eps"',
    ),
    Wrong(
        "gg.silu(3)",
        'Argument 1 to "silu" has incompatible type "int"; expected "Tensor"',
        '"Literal[3]" is not assignable to "Tensor"',
    ),
    Wrong(
        "gg.trace(loss, None, batch='x')",
        'Argument "batch" to "trace" has incompatible type "str"; expected "int"',
        """"Literal['x']" is not assignable to "int\"""",
    ),
    Wrong("gg.Trainer(graph, step=3)", 'Unexpected keyword argument "step" for "Trainer"', 'No parameter named "step"'),
    Wrong(
        "gg.Trainer(graph, lr='1')",
        'Argument "lr" to "Trainer" has incompatible type "str"; expected "float"',
        """"Literal['1']" is not assignable to "float\"""",
    ),
)


def write(folder: Path) -> tuple[Path, list[int]]:
    """The page as a file, and the numbers of the lines that are wrong."""
    path, first = folder / "page.py", RIGHT.count("\n") + 1
    path.write_text(RIGHT + "".join(f"{each.line}\n" for each in WRONG))
    return path, list(range(first, first + len(WRONG)))
