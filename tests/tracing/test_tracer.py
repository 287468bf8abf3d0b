"""The tracer: shapes, names, Dims, printing, and errors that say where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

import ggmlgraph as gg
from ggmlgraph.errors import GGError, ShapeError, UnsupportedError, UsageError
from ggmlgraph.models import gpt_neox, llama
from ggmlgraph.table import ops
from ggmlgraph.tracing.tensor import Tensor

SMALL = llama.Config(n_vocab=31, n_embd=16, n_head=4, n_head_kv=2, n_layer=2, n_ff=24)


@dataclass(frozen=True)
class Empty:
    """A config without sizes."""


def trace_of(body: Any, batch: int = 2, ctx: int = 8) -> Any:
    """Trace `body(p, x)` on the embedding x (batch, ctx, 16); its result is summed to be the loss."""

    def loss(p: gg.Params, tokens: Tensor, targets: Tensor, c: Empty) -> Tensor:
        x = p.embedding("token_embd", tokens, 31, 16)
        return body(p, x).sum()

    return gg.trace(loss, Empty(), batch=batch, ctx=ctx)


def test_sizes_that_follow_batch_and_ctx_print_as_expressions() -> None:
    text = str(gg.trace(llama.loss, SMALL, batch=2, ctx=8))
    assert "%logits f32[batch,ctx,31] = mul_mat(%output.weight, " in text
    assert "f32[batch,4,ctx,ctx] = soft_max(" in text
    assert "i32[batch*ctx] = reshape(%tokens)" in text


def test_every_node_prints_the_line_of_the_model_that_made_it() -> None:
    lines = str(gg.trace(llama.loss, SMALL)).splitlines()
    assert all("# models/llama.py:" in line for line in lines[2:])


def test_equal_batch_and_ctx_are_told_apart() -> None:
    text = str(gg.trace(gpt_neox.loss, gpt_neox.Config(n_vocab=31, n_embd=16, n_head=2, n_layer=1), batch=8, ctx=8))
    assert "%logits f32[batch,ctx,31]" in text


def test_shape_error_names_the_line_and_both_operands() -> None:
    def body(p: gg.Params, x: Tensor) -> Tensor:
        return gg.mul_mat(p("w", 4, 5), x)  # the line of the error

    with pytest.raises(ShapeError) as error:
        trace_of(body)
    line = body.__code__.co_firstlineno + 1
    assert f"test_tracer.py:{line}: mul_mat: inner sizes 5 and 16 differ" in str(error.value)
    assert "a = %w f32[4,5]" in str(error.value)
    assert "f32[batch,ctx,16]" in str(error.value)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (lambda p, x: gg.rms_norm(x, "small"), "rms_norm: eps is 'small', not a number"),
        (lambda p, x: ops.scale(x, x), r"scale: s is %\d+ f32\[batch,ctx,16\], not a number"),
        (lambda p, x: gg.diag_mask_inf(x, 0.5), "diag_mask_inf: n_past is 0.5, not a whole number"),
        (lambda p, x: x.reshape(2.5, -1), r"reshape: \(2.5, -1\) is no shape of whole numbers"),
        (lambda p, x: gg.repeat(x, 3), "repeat: 3 is no shape of whole numbers"),
    ],
)
def test_a_number_or_shape_that_is_none_is_told_with_the_line(body: Any, told: str) -> None:
    with pytest.raises(TypeError, match=r"test_tracer\.py:\d+: " + told):
        trace_of(body)


def test_a_shape_that_does_not_fit_is_told_as_it_was_asked_for() -> None:
    with pytest.raises(ShapeError, match=r"reshape: .* a = %\d+ f32\[batch,ctx,16\], shape = \[3,-1\]$"):
        trace_of(lambda p, x: x.reshape(3, -1))


def test_if_on_a_tensor_raises_with_the_reason() -> None:
    with pytest.raises(TypeError, match=r"test_tracer\.py:\d+: a tensor has no values while .* `if`"):
        trace_of(lambda p, x: x if x else x * 2.0)


@pytest.mark.parametrize("use", [float, int, list, len])
def test_other_uses_of_values_raise(use: Any) -> None:
    with pytest.raises(TypeError, match=r"test_tracer\.py:\d+: a tensor has no"):
        trace_of(lambda p, x: use(x))


def test_same_parameter_with_another_shape_raises() -> None:
    with pytest.raises(ShapeError, match=r"parameter w is \(16,\) here but \(3,\) at .*test_tracer\.py"):
        trace_of(lambda p, x: x * p("w", 16) if p("w", 3) is not None else x)


def test_parameter_that_is_shared_is_one_parameter() -> None:
    graph = trace_of(lambda p, x: x * p("w", 16) + x * p.share("w", 16))
    assert sum(node.name == "w" for node in graph.nodes) == 1


def test_scope_path_is_the_name() -> None:
    graph = trace_of(lambda p, x: (p / "blk.0" / "deep").linear("attn_q", x, 4))
    assert "blk.0.deep.attn_q.weight" in [node.name for node in graph.nodes]


def test_tensors_are_immutable() -> None:
    def body(p: gg.Params, x: Tensor) -> Tensor:
        x.id = 3
        return x

    with pytest.raises(AttributeError, match="immutable"):
        trace_of(body)


def test_tensor_of_another_graph_is_refused() -> None:
    kept: list[Tensor] = []
    trace_of(lambda p, x: kept.append(x) or x)  # type: ignore[func-returns-value]
    with pytest.raises(TypeError, match="another graph"):
        trace_of(lambda p, x: x + kept[0])


def test_loss_that_is_not_a_scalar_is_refused() -> None:
    def loss(p: gg.Params, tokens: Tensor, targets: Tensor, c: Empty) -> Tensor:
        return p.embedding("token_embd", tokens, 31, 16)

    with pytest.raises(ShapeError, match="loss must return a scalar"):
        gg.trace(loss, Empty())


def test_hard_coded_size_makes_the_graph_fixed_and_says_where() -> None:
    graph = trace_of(lambda p, x: x.reshape(16, 16))
    assert "test_tracer.py" in graph.fixed
    assert "reshape" in graph.fixed


def test_minus_one_in_reshape_is_what_is_left() -> None:
    shapes: list[tuple[int, ...]] = []
    trace_of(lambda p, x: shapes.append(x.reshape(-1, 4).shape) or x)  # type: ignore[func-returns-value]
    assert shapes == [(64, 4)]


def test_slices_are_views_with_numpy_semantics() -> None:
    graph = trace_of(lambda p, x: x[..., 4:12][:, 1:3])
    assert "f32[batch,2,8]" in str(graph)


def test_slice_out_of_range_raises() -> None:
    with pytest.raises(ShapeError, match="slice 4:17 of an axis of size 16"):
        trace_of(lambda p, x: x[..., 4:17])


def test_matmul_is_numpys() -> None:
    shapes: list[tuple[int, ...]] = []

    def body(p: gg.Params, x: Tensor) -> Tensor:
        shapes.extend([(x @ p("w", 16, 5)).shape, (x @ p("v", 7, 16).T).shape])
        return x * p("unused_gain", 16)

    trace_of(body)
    assert shapes == [(2, 8, 5), (2, 8, 7)]


def test_name_taken_twice_raises() -> None:
    with pytest.raises(UsageError, match="'h' was taken at"):
        trace_of(lambda p, x: (x * 2.0).named("h") + (x * 3.0).named("h"))


def test_op_without_derivative_is_named_before_training() -> None:
    graph = trace_of(lambda p, x: ops.silu_back(x, x))
    with pytest.raises(UnsupportedError, match=r"test_tracer\.py:\d+: no derivative for silu_back"):
        graph.check_gradient()


def test_internal_op_is_not_written_to_a_file(tmp_path: Any) -> None:
    graph = trace_of(lambda p, x: ops.swiglu(x, x))
    with pytest.raises(UnsupportedError, match=r"test_tracer\.py:\d+: ggml has no op swiglu"):
        graph.save(tmp_path / "graph.bin")


def test_weights_depend_on_seed_and_name_only(tmp_path: Any) -> None:
    def first(p: gg.Params, x: Tensor) -> Tensor:
        return x * p("a", 16, init=gg.normal(1.0)) * p("b", 16, init=gg.normal(1.0))

    def second(p: gg.Params, x: Tensor) -> Tensor:
        return x * p("b", 16, init=gg.normal(1.0)) * p("a", 16, init=gg.normal(1.0))

    values = []
    for k, body in enumerate((first, second)):
        trace_of(body).save(tmp_path / f"{k}.bin", seed=7)
        with gg.Runtime(tmp_path / f"{k}.bin") as rt:
            values.append({name: rt.get(name).tobytes() for name in rt.params})
    assert values[0] == values[1]


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(GGError, match="ctx is 0"):
        gg.trace(llama.loss, SMALL, ctx=0)
