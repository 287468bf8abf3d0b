"""Whatever a slip in a model's function is, it is told in one line, with its place, and not in Python's own words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

import ggmlgraph as gg
from ggmlgraph.cli.main import run

HEAD = """import numpy as np
import ggmlgraph as gg

def loss(p, tokens, targets, c):
    x = p.embedding("token_embd", tokens, 256, 16)
"""
PYTHONS = ("object has no attribute", "positional argument", "bad operand", "not subscriptable")
SLIPS = (
    'x.foo',
    'x.exp()',
    'x.transpose(0, 1)',
    'x.reshap(2)',
    'x.shape = 3',
    'p.linear("a", x)',
    'p.linear("a", x, "b")',
    'p.linear("a", None, 3)',
    'p.linear("a", np.ones(3), 3)',
    'p.linear("a", x, 3, bais=True)',
    'p.lin("a", x, 3)',
    'p.blk',
    'p("w")',
    'p("w", "a")',
    'p("w", (4, 5))',
    'p(3, 4)',
    'p / 3',
    'x @ p("w", 5, 5)',
    'x == "a"',
    'x == None',
    'x in [p("w", 3)]',
    'gg.concat([])',
    'gg.concat([x, None])',
    'gg.concat(x, x)',
    'gg.stack(3)',
    'gg.scan(lambda c, x: (c, x), x, 3)',
    'gg.scan(x, x)',
    'gg.softmax(x, "a")',
    'gg.softmax(x, 7)',
    'gg.softmax()',
    'gg.softmax(x, axes=1)',
    'x.sum(axis="a")',
    'x.sum(4)',
    'x.mean(-1, True, 3)',
    'x + None',
    'None + x',
    'x * [1, 2]',
    'x + "a"',
    'x.reshape("a")',
    'x.permute(0)',
    'gg.where(x, None, 3)',
    'gg.where(x > 0, x)',
    'gg.maximum(3, 4)',
    'gg.maximum(x, None)',
    'c.n_layre',
    'c.foo',
    'y = None\n    y.reshape(3)',
    'y = None\n    y * 3',
    'undefined + x',
    'gg.normal("a")',
    'gg.zeros(3)',
    'p("w", 3, init=gg.zeros)',
    'gg.attention(x, x, x)',
    'gg.attention(x, x)',
    'gg.dropout(x, "a")',
    'gg.conv1d(x, None)',
    'gg.conv2d(x, 3)',
    'p.conv("c", x, 3, "a")',
    'gg.max_pool2d(x, "a")',
    'gg.group_norm(x, "a")',
    'gg.cross_entropy(x, None)',
    'gg.cross_entropy(x, targets, 3)',
    'gg.mse(x, 3)',
    'gg.huber(x, x, "a")',
    'gg.bce(x, "b")',
    'p.cross_entropy(x, 3)',
    'p.positions("a")',
    'p.group(3)',
    'p.group("nothing", decay=0)',
    'gg.einsum("ij", 3)',
    'gg.gather(x, x)',
    'gg.gather(x, 3)',
    'gg.gather(x, tokens, axis="a")',
    'gg.pad(x, "a")',
    'gg.split(x, "a")',
    'gg.split(x, 5)',
    'gg.split(x, [99])',
    'x[1.5]',
    'x["a"]',
    'x[5]',
    'x[x]',
    'x[[0, 1]]',
    'x[:, :, :, 0]',
    'x[1:1]',
    'if x > 0: pass',
    'if tokens == 3: pass',
    'for r in x: pass',
    'float(x)',
    'len(x)',
    'x ** "a"',
    'x ** None',
    '(-1) ** x',
    'x / 0',
    'tokens + 1',
    'tokens * 2.0',
    'tokens == 0',
    'tokens @ x',
    'gg.silu(tokens)',
    'p.linear("a", tokens, 3)',
    'p.embedding("e", x, 3, 4)',
    'gg.flip(x, 9)',
    'x.swapaxes(0)',
    'x.squeeze(0)',
    'x.named(3)',
    'x.named("")',
    'x.T.T.foo',
    'gg.tril(3)',
    'gg.tril(x, "a")',
    'gg.cumsum(x)',
    'gg.rotate(p, x, c)',
    'gg.arange("a")',
    'gg.constant(None)',
    'gg.logsumexp(3)',
    'gg.equal(3, 4)',
    'gg.equal(x, None)',
    'gg.logical_not(3)',
    'gg.repeat(x, (3,))',
    'gg.rms_norm(x)',
    'gg.rms_norm(x, None)',
    'gg.nosuch(x)',
    'gg.stop_gradient(3)',
    'gg.argmax(x, axis=(0, 1))',
    'x.max(axis=1.5)',
    'x.float("a")',
    'np.exp(x)',
    'np.sum(x)',
    'np.array(x)',
    'np.concatenate([x, x])',
    'x + np.ones(16)',
    'np.ones(16) + x',
    'x % 2',
    'x // 2',
    'round(x)',
    'x[0] = 3',
    '1 / 0',
    '{}["a"]',
    '[][3]',
    'int("a")',
    'p.linear(x, "a", 3)',
    'gg.trace(3)',
    'gg.trace()',
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """That of the model."""

    n_layer: int = 2


def model(slip: str) -> Any:
    source = f"{HEAD}    {slip}\n    return p.cross_entropy(p.linear('output', x, 256), targets)\n"
    names: dict[str, Any] = {}
    exec(compile(source, "model.py", "exec"), names)
    return names["loss"]


def test_every_slip_is_told_in_a_line_with_its_place(check_each: Callable[..., None]) -> None:
    def check(slip: str) -> None:
        with pytest.raises(Exception, match=rf"^model\.py:{6 + slip.count(chr(10))}: ") as error:
            gg.trace(model(slip), Config(), batch=2, ctx=8)
        assert "\n" not in str(error.value)
        assert not any(words in str(error.value) for words in PYTHONS)

    check_each(SLIPS, check)


def test_a_command_tells_a_slip_in_a_line_with_one_place(tmp_path: Any, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(HEAD + "    return p.linear('output', x)\n")
    assert run(["export", "model.py", "-o", "g.bin"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("ggmlgraph: error: model.py:6: linear: missing argument 'n_out'; it is called as")
    assert told.count("model.py") == told.count("\n") == 1


def test_an_error_of_the_models_own_keeps_its_kind() -> None:
    class Odd(Exception):
        pass

    def loss(p: gg.Params, tokens: gg.Tensor, targets: gg.Tensor) -> gg.Tensor:
        raise Odd("as it was")

    with pytest.raises(Odd, match=r"^as it was$"):
        gg.trace(loss)
    with pytest.raises(ZeroDivisionError, match=r"^model.py:6: division by zero"):
        gg.trace(model("x = x * (1 / 0)"), Config())
