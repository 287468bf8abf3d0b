"""What a model's function takes and returns: inputs by annotation, the config, a scalar, outputs by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

import ggmlgraph as gg
from ggmlgraph.errors import GGError, ShapeError, UnsupportedError, UsageError


@dataclass(frozen=True)
class Config:
    n_in: int = 5
    n_class: int = 3
    name: str = "x"


Points = Annotated[gg.Tensor, gg.Float("batch", "n_in")]
Image = Annotated[gg.Tensor, gg.Float("batch", 4, 3)]
Label = Annotated[gg.Tensor, gg.Ids("batch")]
Rows = Annotated[gg.Tensor, gg.Float("batch", "ctx", 4)]


def classifier(p: gg.Params, image: Image, label: Label, c: Config) -> Any:
    logits = p.linear("output", image.reshape(image.shape[0], 12), c.n_class)
    rows = gg.get_rows(gg.soft_max(logits).reshape(image.shape[0], c.n_class, 1), label.reshape(-1, 1))
    return gg.log(rows).sum() * (-1.0 / image.shape[0]), {"scores": logits}


def regression(p: gg.Params, x: Points, y: Points) -> gg.Tensor:
    return gg.sqr(p.linear("a", x, 5) - y).sum()


def of_rows(p: gg.Params, x: Rows, c: Config) -> gg.Tensor:
    return gg.sqr(p.linear("a", x, 2)).sum()


def saved(loss: Any, path: Path, **options: Any) -> Path:
    gg.trace(loss, Config(), **options).save(path / "g.bin")
    return path / "g.bin"


def test_inputs_have_the_names_sizes_and_types_of_their_annotations(tmp_path: Path) -> None:
    with gg.Runtime(saved(classifier, tmp_path, batch=7)) as rt:
        found = {name: (rt.input(name).shape, rt.input(name).dtype) for name in rt.inputs}
    assert found == {"image": ((7, 4, 3), np.float32), "label": ((7,), np.int32)}


def test_a_graph_has_the_sizes_that_its_inputs_name(tmp_path: Path) -> None:
    assert gg.trace(classifier, Config()).sizes == {"batch": 1}
    assert gg.trace(of_rows, Config(), batch=2, ctx=8).sizes == {"batch": 2, "ctx": 8}
    with gg.Runtime(saved(classifier, tmp_path, batch=2), batch=5) as rt:
        assert rt.input("image").shape == (5, 4, 3)
        with pytest.raises(UnsupportedError, match="ctx"):
            rt.at(ctx=3)


def test_a_loss_of_named_inputs_is_the_formula_and_trains(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image, label = rng.normal(size=(6, 4, 3)).astype(np.float32), rng.integers(0, 3, 6)
    with gg.Runtime(saved(classifier, tmp_path, batch=2), batch=6, threads=1) as rt:
        z = image.reshape(6, 12).astype(np.float64) @ rt.get("output.weight").astype(np.float64).T
        expected = (np.log(np.exp(z).sum(-1)) - z[np.arange(6), label]).mean()
        assert rt.loss_of({"image": image, "label": label}) == pytest.approx(expected, rel=1e-5)
        scores, loss = rt.forward("scores", "loss", image=image, label=label)
        np.testing.assert_allclose(scores, z, rtol=1e-4, atol=1e-6)
        losses = [rt.step({"image": image, "label": label}, lr=0.05).loss for _ in range(40)]
    assert losses[0] == pytest.approx(float(loss.item()), rel=1e-6)
    assert losses[-1] < 0.5 * losses[0]


def test_sizes_are_also_those_of_the_config_and_a_config_is_not_needed() -> None:
    graph = gg.trace(regression, Config(n_in=5), batch=2)
    assert "x f32[batch,5] = input" in str(graph)

    def square(p: gg.Params, tokens: gg.Tensor) -> gg.Tensor:
        return p.embedding("a", tokens, 3, 2).sum()

    assert "tokens i32[batch,ctx] = input tokens" in str(gg.trace(square))


def test_a_function_may_be_made_of_another() -> None:
    @wraps(regression)
    def decorated(*operands: Any) -> Any:
        return regression(*operands)

    class Model:
        def loss(self, p: gg.Params, x: Points, y: Points) -> gg.Tensor:
            return regression(p, x, y)

    for function in (decorated, partial(regression), Model().loss):
        assert "y f32[batch,5] = input" in str(gg.trace(function, Config()))


def test_ids_are_checked_when_they_are_fed(tmp_path: Path) -> None:
    image = np.zeros((2, 4, 3), np.float32)
    with gg.Runtime(saved(classifier, tmp_path, batch=2)) as rt:
        for labels, error, message in (
            ([0, 1 << 31], UsageError, "label is int32, which has no 2147483648"),
            ([0.0, 1.0], ShapeError, r"label is int32\[2\], got float64"),
            ([0, 1, 2], ShapeError, r"label is int32\[2\]"),
            ([0, 3], GGError, "3"),
        ):
            with pytest.raises(error, match=message):
                rt.loss_of({"image": image, "label": np.array(labels)})
        with pytest.raises(UsageError, match="no input 'picture'; its inputs are image, label"):
            rt.forward("scores", picture=image)


def test_any_form_of_one_number_is_a_loss() -> None:
    for shape in ((1,), (1, 1), (1, 1, 1)):

        def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Any, shape: Any = shape) -> gg.Tensor:
            return p.embedding("a", tokens, 3, 2).sum().reshape(*shape)

        def plain(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor, c: Any) -> gg.Tensor:
            return loss(p, tokens, targets, c)

        assert "%loss f32[1]" in str(gg.trace(plain))


def wrong(**annotations: Any) -> Callable[..., Any]:
    """A function with these annotations of its inputs a and b."""

    def loss(p, a, b, c):  # type: ignore[no-untyped-def]
        return a.sum()

    loss.__annotations__ = annotations
    return loss


BAD_FUNCTIONS: dict[str, tuple[Any, str]] = {
    "one plain": (wrong(a=Image), "does not say what 'b' is; annotate it"),
    "no sizes": (wrong(a=Annotated[gg.Tensor, gg.Float()], b=Label), "'a' has one to four sizes"),
    "the class": (wrong(a=Annotated[gg.Tensor, gg.Ids], b=Label), "'a' has one to four sizes"),
    "five sizes": (wrong(a=Annotated[gg.Tensor, gg.Float(1, 1, 1, 1, 1)], b=Label), "'a' has one to four sizes"),
    "size 0": (wrong(a=Annotated[gg.Tensor, gg.Float("batch", 0)], b=Label), "'a' has the size 0"),
    "size 1.5": (wrong(a=Annotated[gg.Tensor, gg.Float(1.5)], b=Label), "'a' has the size 1.5"),  # type: ignore[arg-type]
    "unknown name": (wrong(a=Annotated[gg.Tensor, gg.Float("n_out")], b=Label), "'n_out', which is neither batch, ctx"),
    "no number": (wrong(a=Annotated[gg.Tensor, gg.Float("name")], b=Label), "'name', which is neither batch, ctx"),
    "not Annotated": (wrong(a=gg.Float("batch"), b=Label), r"write Annotated\[gg.Tensor"),
    "unreadable": (wrong(a="Nowhere", b=Label), "the annotation of 'a', Nowhere, cannot be read: name 'Nowhere'"),
    "nothing": (lambda p, c: p("w", 1), "takes no input"),
    "many": (lambda p, *inputs: p("w", 1), r"takes \*inputs, which is no input"),
    "none returned": (lambda p, tokens, targets, c: None, "must return a scalar .* not nothing, None; is a return"),
    "outputs": (lambda p, tokens, targets, c: (p("w", 1), [1]), "a dict of outputs by name may be returned"),
    "an output": (lambda p, tokens, targets, c: (p("w", 1).sum(), {"y": 3}), "the output 'y' is no tensor but 3"),
    "its name": (lambda p, tokens, targets, c: (p("w", 1).sum(), {"y": tokens}), "is called 'tokens' already"),
}


def test_a_function_that_is_no_model_is_one_line_with_its_place(check_each: Any) -> None:
    def check(case: str) -> None:
        function, message = BAD_FUNCTIONS[case]
        with pytest.raises(GGError, match=rf"^tests/tracing/test_inputs\.py:\d+: .*{message}"):
            gg.trace(function, Config())

    check_each(BAD_FUNCTIONS, check)
