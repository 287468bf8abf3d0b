"""Random graphs (randomgraphs.py) through the runtime: results, gradients, and what is left in memory.

    python tests/graphcheck.py SECONDS [SEED]

The runtime takes any subset of the fusions, 1 to 9 threads and any level of recomputation; threads and recomputation
may not change a bit, and all of it has to be what float64 gives. A gradient is compared with the central difference
along a random direction. Used by test_randomgraphs.py, and by `make fuzz` for longer.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from randomgraphs import LARGEST, Array, Graph, Rng, describe, random_graph

from ggmlgraph.core import passes
from ggmlgraph.core.boundary import call, ffi, lib
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.program import Pool, Program
from ggmlgraph.errors import UnsupportedError
from ggmlgraph.table.dialect import LOSS, OUTPUT, PARAM

FUSIONS = passes.fusion_mask(passes.FUSIONS)
STEP = 1e-5  # of a central difference
TOLERANCE = 3e-4  # of results in float32, relative to the largest
SLOPE_TOLERANCE = 3e-3  # of a gradient along a direction, relative to what its terms add up to without their signs

# ---------------------------------------------------------------- the runtime's side


@dataclass(frozen=True)
class Setting:
    """How the runtime is to compute a graph."""

    fusions: int  # GG_FUSE_*
    threads: int
    recompute: int  # a level, as far as there are any


def imported(content: bytes) -> CoreGraph:
    limits = ffi.new("gg_limits *", (1 << 16, 1 << 30, 1e12))
    return CoreGraph(call(lib.gg_import, ffi.from_buffer("uint8_t[]", content), len(content), b"v2", limits))


def roots_of(graph: CoreGraph, names: list[str]) -> list[int]:
    """These tensors and all that writes into leafs, as Runtime asks for them."""
    return list(dict.fromkeys([*graph.ids(names), *graph.writes()]))


def forward(content: bytes, names: list[str], setting: Setting) -> dict[str, Array]:
    """Tensors after a run."""
    graph = imported(content)
    program = Program(passes.fuse(graph, roots_of(graph, names), setting.fusions), Pool(setting.threads), None)
    program.run()
    return {name: program.array(program.graph.find(name)).copy() for name in names}


def joint_graph(content: bytes, setting: Setting) -> CoreGraph:
    """Forward and backward pass."""
    graph = imported(content)
    (loss,) = graph.flagged(LOSS)
    graph = passes.fuse(graph, roots_of(graph, [graph.name(loss)]), setting.fusions, train=True)
    (loss,) = graph.flagged(LOSS)
    passes.differentiate(graph, loss)
    if setting.recompute:
        graph = passes.recompute(graph, loss, setting.recompute)
    return passes.fuse_gradients(graph, graph.flagged(OUTPUT), setting.fusions)


def backward(content: bytes, setting: Setting) -> tuple[float, dict[str, Array]]:
    """The loss, and its gradient by parameter."""
    graph = joint_graph(content, setting)
    program = Program(graph, Pool(setting.threads), None)
    program.run()
    gradients = {graph.name(i): program.array(passes.gradient_of(graph, i)).copy() for i in graph.flagged(PARAM)}
    return float(program.array(graph.flagged(LOSS)[0]).item()), gradients


# ---------------------------------------------------------------- both


def random_setting(rng: Rng) -> Setting:
    fusions = int(rng.choice([0, FUSIONS, int(rng.integers(FUSIONS + 1))]))
    threads = int(rng.choice([2, 3, int(rng.integers(4, 10))], p=[0.6, 0.3, 0.1]))  # more than cores take their time
    return Setting(fusions, threads, int(rng.choice([0, 1, 2, 9])))


def check_forward(g: Graph, content: bytes, rng: Rng, setting: Setting) -> None:
    """Some tensors, in any order, and every leaf that is written, as memory holds them in the end."""
    names = [g.records[i].name for i in rng.permutation(g.usable)[: int(rng.integers(1, 6))]]
    names += [g.records[i].name for i in g.states if g.records[i].name not in names]
    places = {record.name: i for i, record in enumerate(g.records)}
    found, alone = (forward(content, names, replace(setting, threads=n)) for n in (setting.threads, 1))
    for name in names:
        expected = g.value(places[name])
        error = np.abs(found[name].reshape(expected.shape) - expected).max()
        assert error <= TOLERANCE * max(1, np.abs(expected).max()), f"{name} is off by {error:.2e}"
        assert found[name].tobytes() == alone[name].tobytes(), f"{name} depends on the number of threads"


def slope(g: Graph, directions: dict[int, Array]) -> float:
    """The central difference of the loss along a direction in the space of all parameters."""
    (loss,) = (i for i, r in enumerate(g.records) if r.flags & LOSS)
    moved = []
    for step in (STEP, -STEP):
        leafs = {i: values + step * directions[i] if i in directions else values for i, values in g.leafs.items()}
        moved.append(g.run(leafs)[g.tensors[loss].root][0])
    return float(moved[0] - moved[1]) / (2 * STEP)


def check_backward(g: Graph, content: bytes, rng: Rng, setting: Setting) -> None:
    loss, found = backward(content, replace(setting, threads=1, recompute=0))
    again, others = backward(content, setting)
    (expected,) = (g.value(i).item() for i, r in enumerate(g.records) if r.flags & LOSS)
    assert abs(loss - expected) <= TOLERANCE * max(1, abs(expected), LARGEST), f"the loss is {loss}, not {expected}"
    assert loss == again, "the loss depends on threads or recomputation"
    for name in found:
        assert found[name].tobytes() == others[name].tobytes(), f"d {name} depends on threads or recomputation"
    directions = {i: rng.uniform(-1, 1, values.shape) for i, values in g.leafs.items() if i in g.params}
    terms = {i: (found[g.records[i].name].reshape(-1) * d).astype(float) for i, d in directions.items()}
    expected, allowed = slope(g, directions), SLOPE_TOLERANCE * (1 + sum(np.abs(t).sum() for t in terms.values()))
    if abs(sum(t.sum() for t in terms.values()) - expected) > allowed:
        wrong = {g.records[i].name: (terms[i].sum(), slope(g, {i: directions[i]})) for i in directions}
        raise AssertionError(f"gradients along a direction, got and expected: {wrong}")


REFUSALS = ("overwrites", "a tensor with gaps has no gradient")  # what a gradient may be refused for


def check(seed: int) -> str:
    """What became of a random graph: "trained", or "refused" if it has no gradient. Raises AssertionError."""
    g = random_graph(seed)
    rng = np.random.default_rng([seed, 1])
    content, setting = g.content(), random_setting(rng)
    try:
        check_forward(g, content, rng, setting)
        check_backward(g, content, rng, setting)
    except UnsupportedError as error:
        if not any(reason in str(error) for reason in REFUSALS):
            raise
        return "refused"
    except Exception as error:
        raise AssertionError(f"seed {seed}, {setting}: {error}\n{describe(g)}") from error
    return "trained"


def main(seconds: float, seed: int) -> None:
    """Check graphs from `seed` on, until the time is over."""
    end, outcomes = time.monotonic() + seconds, Counter[str]()
    while time.monotonic() < end:
        outcomes[check(seed + outcomes.total())] += 1
    print(f"random graphs: {', '.join(f'{n} {what}' for what, n in outcomes.items())}")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns())
