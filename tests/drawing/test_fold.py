"""Folding: repeated blocks become one, and nothing that is not the same computation does."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from places import REAL

import ggmlgraph as gg
from ggmlgraph.cli.main import run
from ggmlgraph.core import passes
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.program import Pool, Program
from ggmlgraph.drawing.diagram import diagram
from ggmlgraph.drawing.fold import Item, Part, Repeat, fold, operations_of
from ggmlgraph.drawing.operations import Operations, of_program
from ggmlgraph.drawing.parts import MOST_ITEMS, MOST_PARTS, parted
from ggmlgraph.models import gemma, gpt2, gpt_neox, llama, mistral, mixtral, phi2, qwen2, qwen3
from ggmlgraph.table.dialect import LOSS, OUTPUT, PARAM
from ggmlgraph.table.op import TABLE

pool = cache(Pool)
SIZES: dict[str, Any] = {"n_vocab": 31, "n_embd": 64, "n_head": 4, "n_layer": 6}
ZOO = (llama, gpt2, gpt_neox, gemma, mistral, mixtral, phi2, qwen2, qwen3)


class Chain:
    """A graph of one tensor after the other, (4, 8) each."""

    def __init__(self) -> None:
        self.graph = CoreGraph()
        self.x = self.op("sqr", self.graph.leaf("f32", (4, 8), PARAM, "x"))

    def weight(self) -> int:
        return self.graph.leaf("f32", (8, 8), PARAM, f"w{len(self.graph)}")

    def op(self, name: str, *src: int, **params: Any) -> int:
        op = TABLE[name]
        words = {p.name: p.default for p in op.params} | params
        return self.graph.node(op, [*src, *[-1] * (len(op.sources) - len(src))], words)

    def layer(self, activation: str = "silu", **params: Any) -> None:
        """A layer with a skip: x + activation(x w) w'."""
        hidden = self.op(activation, self.op("mul_mat", self.weight(), self.x), **params)
        self.x = self.op("add", self.x, self.op("mul_mat", self.weight(), hidden))

    def operations(self) -> Operations:
        self.graph.set_flags(self.op("sum", self.x), OUTPUT | LOSS)
        return of_program(Program(self.graph, pool(1), None))


def repeats(items: tuple[Item, ...]) -> list[tuple[int, int]]:
    """(copies, operations of one) of each block, those inside others after them."""
    found = []
    for item in items:
        if isinstance(item, Repeat):
            found += [(len(item.copies), len(item.copies[0])), *repeats(item.body)]
    return found


def test_a_llama_of_32_layers_is_drawn_in_less_than_40_boxes() -> None:
    graph = gg.trace(llama.loss, llama.Config(n_vocab=31, n_embd=16, n_head=4, n_layer=32, n_ff=24), batch=2, ctx=8)
    operations = of_program(Program(passes.copy(graph.core), pool(1), None))
    items = fold(operations)
    assert len(operations.listed) > 700
    assert diagram(items, operations).n_boxes < 40
    assert [n for n, _ in repeats(items)] == [32]


@pytest.mark.parametrize("model", ZOO, ids=lambda model: model.__name__.rpartition(".")[2])
def test_every_model_is_one_block_and_less_than_60_boxes(model: Any) -> None:
    graph = gg.trace(model.loss, model.Config(**SIZES), batch=2, ctx=8)
    operations = of_program(Program(passes.copy(graph.core), pool(1), None))
    items = fold(operations)
    assert repeats(items)[0][0] == SIZES["n_layer"]
    assert diagram(items, operations).n_boxes < 60


@pytest.mark.parametrize(("broken", "expected"), [(None, [12]), (6, [6, 5])])
def test_breaking_one_layer_of_a_model_breaks_the_fold(broken: int | None, expected: list[int]) -> None:
    """Of 12 layers the seventh adds to its norm, not to what came: the same ops and sizes, one wire elsewhere."""

    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: llama.Config) -> gg.Tensor:
        x = p.embedding("token_embd", tokens, c.n_vocab, c.n_embd)
        for i in range(c.n_layer):
            blk = p / f"blk.{i}"
            normed = blk.rms_norm("norm", x, c.norm_eps)
            hidden = gg.silu(blk.linear("up", normed, c.n_embd))
            x = (normed if i == broken else x) + blk.linear("down", hidden, c.n_embd)
        return gg.cross_entropy(p.linear("output", x, c.n_vocab), targets)

    config = llama.Config(n_vocab=31, n_embd=16, n_head=4, n_layer=12, n_ff=24)
    graph = gg.trace(loss, config, batch=2, ctx=8)
    items = fold(of_program(Program(passes.copy(graph.core), pool(1), None)))
    assert [n for n, _ in repeats(items)] == expected


@pytest.mark.parametrize("path", sorted((REAL / "graphs").glob("*.ggml")), ids=lambda path: path.stem)
def test_graphs_of_real_ggml_are_drawn(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["draw", str(path), "-o", str(tmp_path / "g.html")]) == 0
    told = re.search(r"([\d,]+) operations in ([\d,]+) boxes", capsys.readouterr().err)
    assert told is not None
    operations, boxes = (int(each.replace(",", "")) for each in told.groups())
    assert 0 < boxes < 60
    assert operations > 10


def test_every_operation_is_drawn_once() -> None:
    graph = gg.trace(mixtral.loss, mixtral.Config(**SIZES), batch=2, ctx=8)
    operations = of_program(Program(passes.copy(graph.core), pool(1), None))
    drawn = [operation.id for item in fold(operations) for operation in operations_of(item)]
    assert drawn == [operation.id for operation in operations.listed]


def test_names_are_not_needed() -> None:
    chain = Chain()
    for _ in range(5):
        chain.layer()
    assert all(not chain.graph.name(i) for i in range(len(chain.graph)) if not chain.graph.is_leaf(i))
    assert repeats(fold(chain.operations())) == [(5, 4)]


def test_layers_that_alternate_are_blocks_of_two() -> None:
    chain = Chain()
    for _ in range(4):
        chain.layer("silu")
        chain.layer("relu")
    assert repeats(fold(chain.operations())) == [(4, 8)]


def test_every_fourth_layer_of_another_kind_makes_blocks_of_four_with_a_block_of_three_inside() -> None:
    chain = Chain()
    for i in range(12):
        chain.layer("relu" if i % 4 == 3 else "silu")
    assert repeats(fold(chain.operations())) == [(3, 16), (3, 4)]


@pytest.mark.parametrize("change", ["attribute", "wiring", "shared weight", "order of sources"])
def test_a_layer_that_is_another_computation_is_in_no_block_with_others(change: str) -> None:
    """Its ops are the same and as many; one thing is not as in the other layers."""
    chain = Chain()
    first = chain.x
    for i in range(9):
        odd = i == 4
        w, v = chain.weight(), chain.weight()
        slope = 0.2 if odd and change == "attribute" else 0.1
        hidden = chain.op("leaky_relu", chain.op("mul_mat", w, chain.x), slope=slope)
        out = chain.op("mul_mat", w if odd and change == "shared weight" else v, hidden)
        other = first if odd and change == "wiring" else chain.x
        chain.x = chain.op("sub", *((out, other) if odd and change == "order of sources" else (other, out)))
    assert repeats(fold(chain.operations())) == [(4, 4), (4, 4)]


def test_a_value_of_the_first_layer_that_all_others_take_is_shared_and_not_carried() -> None:
    chain = Chain()
    first = None
    for _ in range(6):
        value = chain.op("mul_mat", chain.weight(), chain.x)
        first = value if first is None else first
        chain.x = chain.op("add", chain.op("silu", chain.op("mul", value, first)), chain.x)
    assert (5, 4) in repeats(fold(chain.operations()))


def _alike(graph: CoreGraph, a: int, b: int, pairs: dict[int, int], mates: Callable[[int, int], bool]) -> bool:
    """Whether a is to one copy what b is to the next, compared tensor by tensor down to where the copies begin."""
    if a == b or pairs.get(a) == b:
        return True
    same = graph.op(a) == graph.op(b) and graph.op_params(a) == graph.op_params(b) and graph.shape(a) == graph.shape(b)
    if graph.is_leaf(a) or graph.is_leaf(b) or not same:
        return (graph.is_leaf(a) and graph.is_leaf(b) and same and graph.flags(a) == graph.flags(b)) or mates(a, b)
    pairs[a] = b
    sources = zip(graph.src(a), graph.src(b), strict=True)
    return all(x == y == -1 or _alike(graph, x, y, pairs, mates) or mates(x, y) for x, y in sources)


@pytest.mark.parametrize("seed", range(20))
def test_blocks_of_random_graphs_are_the_same_computation_by_another_comparison(seed: int) -> None:
    """Layers of random ops and wires, a few of them changed; what is folded is compared tensor by tensor."""
    rng = random.Random(seed)
    chain = Chain()
    names = rng.choices(["silu", "relu", "mul_mat", "add", "mul"], k=rng.randint(4, 9))
    plan = [(name, rng.random(), rng.random()) for name in names]
    for _ in range(rng.randint(3, 8)):
        inside = [chain.x]
        for name, u, v in plan:
            u = rng.random() if rng.random() < 0.01 else u
            a, b = inside[int(u * len(inside))], inside[int(v * len(inside))]
            sources = (a,) if name in ("silu", "relu") else (chain.weight(), a) if name == "mul_mat" else (a, b)
            inside.append(chain.op(name, *sources))
        chain.x = chain.op("add", inside[-1], inside[len(inside) // 2])
    operations = chain.operations()
    graph = chain.graph
    for item in fold(operations):
        if not isinstance(item, Repeat):
            continue
        for one, other in zip(item.copies, item.copies[1:], strict=False):
            inside_of = {operation.id for operation in (*one, *other)}
            pairs: dict[int, int] = {}
            for a, b in zip(one, other, strict=True):
                outside = lambda x, y, own=inside_of: x not in own or y not in own  # noqa: E731
                assert _alike(graph, a.id, b.id, pairs, outside)


def test_time_grows_as_the_graph_does() -> None:
    def seconds(n: int) -> float:
        chain = Chain()
        for _ in range(n):
            chain.layer()
        operations = chain.operations()
        start = time.perf_counter()
        assert repeats(fold(operations)) == [(n, 4)]
        return time.perf_counter() - start

    small = min(seconds(100) for _ in range(3))
    assert seconds(1600) < 16 * 4 * small + 0.5


def unlike(n: int, seed: int = 0) -> Chain:
    """n operations in which nothing comes again."""
    rng, chain = random.Random(seed), Chain()
    made = [chain.x]
    for _ in range(n):
        name = rng.choice(["silu", "relu", "tanh", "sqr", "abs", "add", "mul", "mul_mat"])
        a, b = (made[-1 - min(len(made) - 1, int(rng.expovariate(0.1)))] for _ in range(2))
        sources = {"add": (a, b), "mul": (a, b), "mul_mat": (chain.weight(), a)}.get(name, (a,))
        made.append(chain.op(name, *sources))
    chain.x = made[-1]
    return chain


def test_what_does_not_repeat_is_not_folded() -> None:
    assert repeats(fold(unlike(400).operations())) == []


def levels(items: tuple[Item, ...]) -> list[tuple[Item, ...]]:
    """The items, and those of all that they hold."""
    held = [item.items if isinstance(item, Part) else item.body for item in items if not hasattr(item, "op")]
    return [items, *(level for each in held for level in levels(each))]


@pytest.mark.parametrize("chain", ["unlike", "folded"])
def test_a_large_graph_is_parts_that_can_be_seen_and_has_every_operation_once(chain: str) -> None:
    graph = unlike(5000)
    for _ in range(40 if chain == "folded" else 0):
        graph.layer()
    operations = graph.operations()
    items = parted(fold(operations), operations)
    assert [o.id for item in items for o in operations_of(item)] == [o.id for o in operations.listed]
    assert all(len(level) <= max(MOST_ITEMS, MOST_PARTS) * 1.6 for level in levels(items))
    assert len(items) <= MOST_PARTS
    for depth in (0, 9):
        drawn = diagram(items, operations, depth)
        assert drawn.amounts.n_operations == len(operations.listed)
        assert sum(box.is_part for box in drawn.boxes) == (len(items) if depth else 0)


def test_a_graph_of_one_operation_is_one_box() -> None:
    graph = CoreGraph()
    x = graph.leaf("f32", (3,), PARAM, "x")
    graph.set_flags(graph.node(TABLE["sum"], [x], {}), OUTPUT | LOSS)
    operations = of_program(Program(graph, pool(1), None))
    assert diagram(fold(operations), operations).n_boxes == 1


def test_forward_and_backward_of_training_fold_each() -> None:
    graph = gg.trace(llama.loss, llama.Config(n_vocab=31, n_embd=16, n_head=4, n_layer=8, n_ff=24), batch=2, ctx=8)
    core = passes.copy(graph.core)
    passes.differentiate(core, graph.core.find("loss"))
    items = fold(of_program(Program(core, pool(1), None)))
    assert [n for n, size in repeats(items) if size > 15] == [8, 8]
