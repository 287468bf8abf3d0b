"""The examples of docs/examples as modules, and what they train: a function, its batches, the sizes of its graph.

Used by test_examples.py, and by peers/twins.py, which has each again in torch.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from places import ROOT

import ggmlgraph as gg

FOLDER = ROOT / "docs" / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


@dataclass(frozen=True)
class Example:
    """One loss of one of them."""

    module: ModuleType
    loss: Callable[..., Any]
    inputs: tuple[str, ...]

    def graph(self) -> gg.Graph:
        module = self.module
        return gg.trace(self.loss, module.Config(), batch=module.BATCH, ctx=getattr(module, "CTX", 1))

    def batch(self, step: int) -> dict[str, Any]:
        return {name: values for name, values in self.module.batch(step).items() if name in self.inputs}


@cache
def load(name: str) -> ModuleType:
    """The module of an example, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def examples() -> dict[str, Example]:
    """By name; of a pair of losses each."""
    found = {}
    for name in NAMES:
        module = load(name)
        for function in ("loss", "judge_loss", "maker_loss"):
            if loss := getattr(module, function, None):
                inputs = tuple(loss.__annotations__)[1:-2]  # without p, the config and what is returned
                found[name if function == "loss" else function] = Example(module, loss, inputs)
    return found
