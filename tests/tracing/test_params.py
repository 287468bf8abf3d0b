"""Parameters: declared once, shared where that is said, frozen, in groups."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.core.importer import import_file, read_metadata
from ggmlgraph.errors import GGError, UsageError
from ggmlgraph.graphfile.metadata import ParamGroup

X = Annotated[gg.Tensor, gg.Float("batch", 4)]


def graph_of(body: Any) -> gg.Graph:
    def loss(p: gg.Params, x: X) -> gg.Tensor:
        return gg.sqr(body(p, x)).sum()

    return gg.trace(loss, batch=3)


def two(p: gg.Params, x: gg.Tensor) -> gg.Tensor:
    return (p / "head").linear("out", (p / "body").linear("in", x, 5, bias=True), 2, bias=True)


def autoencoder(p: gg.Params, x: gg.Tensor) -> gg.Tensor:
    """An encoder that is used twice."""
    return encode(p / "encoder", x) + encode(p.share / "encoder", x * 2.0)


def encode(p: gg.Params, x: gg.Tensor) -> gg.Tensor:
    return p.linear("b", p.layer_norm("norm", p.linear("a", x, 6), 1e-5), 6)


def test_a_part_that_is_shared_is_declared_once_and_used_twice() -> None:
    graph = graph_of(autoencoder)
    names = [node.name for node in graph.nodes if node.initializer]
    assert names == ["encoder.a.weight", "encoder.norm.weight", "encoder.norm.bias", "encoder.b.weight"]


def test_declarations_that_contradict_are_one_line_with_both_places(check_each: Any) -> None:
    cases: dict[str, tuple[Any, str]] = {
        "twice": (lambda p, x: x * p("w", 4) * p("w", 4), "w was declared at .*: give another name, or declare it in"),
        "in a scope": (lambda p, x: encode(p / "e", x) + encode(p / "e", x), "e.a.weight was declared at"),
        "shape": (lambda p, x: x * p("w", 4) * p.share("w", 1), r"w is \(1,\) here but \(4,\) at"),
        "frozen": (lambda p, x: x * p("w", 4) * p.share.frozen("w", 4), "w is frozen here but trained at"),
        "trained": (lambda p, x: x * p.frozen("w", 4) * p.share("w", 4), "w is trained here but frozen at"),
        "an input": (lambda p, x: x * p("x", 3, 4), "parameter x: the name was taken at|parameter x is"),
        "one axis": (lambda p, x: x * p("w", 4, init=gg.xavier_normal()), "parameter w: xavier_normal.* two axes"),
        "orthogonal": (lambda p, x: x * p("w", 4, init=gg.orthogonal()), "parameter w: orthogonal.* needs two axes"),
        "array": (lambda p, x: x * p("w", 4, init=gg.from_array([1, 2])), r"w: from_array: the array is \[2\], the"),
        "no operand": (lambda p, x: p.linear("a", None, 2), "linear: x is None; is a return missing"),
        "none of an op": (lambda p, x: gg.mul_mat(x, None), "mul_mat takes tensors, got None; is a return missing"),
        "no image": (lambda p, x: p.conv("c", x, 2, 3), r"conv c: %x f32\[batch,4\] is no signals"),
        "groups": (lambda p, x: p.conv("c", x.reshape(3, 4, 1), 2, 1, groups=3), "or images of 3 groups"),
        "group": (lambda p, x: p.group("*.bais") or two(p, x), r"called '\*.bais'; there are .*bias"),
        "group of frozen": (lambda p, x: p.group("body.*") or two(p.frozen, x), r"'body.\*'; there are none"),
        "factor": (lambda p, x: p.group("*", lr=-1.0) or two(p, x), r"lr -1.0 is not in 0..1e\+06"),
        "no factor": (lambda p, x: p.group("*", decay=float("nan")) or two(p, x), "decay nan is not in"),
    }

    def check(case: str) -> None:
        body, message = cases[case]
        with pytest.raises((GGError, TypeError), match=rf"test_params\.py:\d+: .*({message})"):
            graph_of(body)

    check_each(cases, check)


def test_frozen_parameters_are_kept_while_gradients_pass_through_them(tmp_path: Path) -> None:
    def body(p: gg.Params, x: gg.Tensor) -> gg.Tensor:
        return (p.frozen / "head").linear("out", (p / "body").linear("in", x, 5), 2)

    for dialect in ("v1", "v2a"):
        path = tmp_path / f"{dialect}.bin"
        graph_of(body).save(path, seed=3, dialect=dialect)
        x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
        with gg.Runtime(path, threads=1) as rt:
            assert rt.params == ["body.in.weight"]
            head, inside = rt.get("head.out.weight"), rt.get("body.in.weight")
            assert np.array_equal(head, gg.normal(0.02).fill("head.out.weight", (2, 5), 3))
            rt.step({"x": x}, lr=0.1)
            expected = head.T @ (2 * (x @ inside.T @ head.T)).T @ x
            np.testing.assert_allclose(rt.gradient("body.in.weight"), expected, rtol=1e-4, atol=1e-7)
            assert np.array_equal(rt.get("head.out.weight"), head)
            assert not np.array_equal(rt.get("body.in.weight"), inside)


def test_groups_are_in_the_file_and_the_first_that_matches_counts(tmp_path: Path) -> None:
    def body(p: gg.Params, x: gg.Tensor) -> gg.Tensor:
        (p / "head").group("*", lr=0.1)
        p.group("*.bias", decay=0.0)
        return two(p, x)

    for dialect in ("v1", "v2"):
        graph_of(body).save(tmp_path / "g.bin", dialect=dialect)
        meta = read_metadata(import_file(tmp_path / "g.bin"))
        assert meta.groups == (ParamGroup("head.*", 0.1), ParamGroup("*.bias", 1.0, 0.0))
        found = {
            name: (meta.group_of(name).lr, meta.group_of(name).decay) for name in ("head.out.bias", "body.in.bias")
        }
        assert found == {"head.out.bias": (0.1, 1.0), "body.in.bias": (1.0, 0.0)}
        assert meta.group_of("body.in.weight") == ParamGroup("*")


def test_there_are_so_many_groups_and_no_more() -> None:
    def body(p: gg.Params, x: gg.Tensor) -> gg.Tensor:
        for _ in range(257):
            p.group("*")
        return x

    with pytest.raises(UsageError, match="more than 256 groups"):
        graph_of(body)


def test_a_convolution_s_weights_have_torch_s_shapes() -> None:
    def body(p: gg.Params, x: gg.Tensor) -> gg.Tensor:
        y = p.conv("signal", x.reshape(3, 2, 2), 6, 2, groups=2, bias=True)
        z = p.conv("image", x.reshape(3, 1, 2, 2), 5, 2, init=gg.kaiming_uniform())
        return y.reshape(-1).sum() + z.reshape(-1).sum()

    shapes = {node.name: node.shape for node in graph_of(body).nodes if node.initializer}
    assert shapes == {"signal.weight": (6, 1, 2), "signal.bias": (6,), "image.weight": (5, 1, 2, 2)}


def test_groups_and_patterns_multiply_a_parameter_s_rate_and_decay() -> None:
    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: None) -> gg.Tensor:
        x = p.embedding("e", tokens, 31, 4)
        p.group("o.*", lr=0.5, decay=0.25)
        return p.cross_entropy(p.linear("o", x, 31, bias=True), targets)

    graph = gg.trace(loss, None, batch=1, ctx=4)
    cases: list[tuple[dict[str, Any], dict[str, tuple[float, float]]]] = [
        ({}, {"e.weight": (1, 1), "o.weight": (0.5, 0.125), "o.bias": (0.5, 0)}),
        ({"lr_of": {"*.weight": 3, "e.*": 2}}, {"e.weight": (3, 3), "o.weight": (3, 0.75), "o.bias": (0.5, 0)}),
        ({"decay_of": {"o.bias": 2, "e*": 0}}, {"e.weight": (1, 0), "o.weight": (0.5, 0.125), "o.bias": (0.5, 1)}),
    ]
    for given, wanted in cases:
        with gg.Runtime(graph, threads=1, **given) as runtime:
            assert {name: (u.rate, u.decay) for name, u in runtime.updates.items()} == wanted


def test_what_has_two_axes_decays_even_with_one_row_and_vectors_do_not(tmp_path: Path) -> None:
    def body(p: gg.Params, x: gg.Tensor) -> gg.Tensor:
        return p.linear("one_row", x, 1, bias=True)

    graph_of(body).save(tmp_path / "g.bin")
    with gg.Runtime(tmp_path / "g.bin", threads=1) as runtime:
        assert {name: u.decay for name, u in runtime.updates.items()} == {"one_row.weight": 1, "one_row.bias": 0}


def test_a_pattern_that_matches_nothing_and_a_factor_below_0_are_refused() -> None:
    graph = graph_of(two)
    for given, told in (({"lr_of": {"heat.*": 2}}, "no parameter is called 'heat"), ({"decay_of": {"*": -1}}, "-1")):
        with pytest.raises(UsageError, match=told):
            gg.Runtime(graph, threads=1, **given)  # type: ignore[arg-type]
