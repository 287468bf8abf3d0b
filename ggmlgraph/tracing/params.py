"""`Params`: how a model declares its parameters, at the place where they are used.

`p / "blk.0"` is a scope; the path of scopes plus the name is the parameter's name in the file, and the names are
GGUF's (`blk.0.attn_q.weight`). A name is declared once; `p.share` is the same scope where it may be declared again,
with the same shape, and then is the same parameter: tied weights, or a part that is used twice.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, NoReturn

from ggmlgraph.errors import ShapeError, here
from ggmlgraph.table import ops
from ggmlgraph.table.dialect import OUTPUT
from ggmlgraph.tracing import convolution, losses
from ggmlgraph.tracing.calls import checked_methods
from ggmlgraph.tracing.initializers import Initializer, normal, ones, zeros
from ggmlgraph.tracing.tensor import Tensor

if TYPE_CHECKING:
    from ggmlgraph.tracing.tracer import Graph

STD = 0.02  # of weight matrices (Radford et al. 2019)


@checked_methods
class Params:
    """The parameters of one scope of a graph."""

    def __init__(self, graph: Graph, scope: str = "", *, shared: bool = False, trained: bool = True) -> None:
        self.graph = graph
        self.scope = scope
        self._shared, self._trained = shared, trained

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # Python's own questions
            raise AttributeError(name)
        close = get_close_matches(name, [each for each in dir(Params) if each[0] != "_"], 1)
        meant = f"did you mean {close[0]}?" if close else f"p / {name!r} is a scope, p({name!r}, *shape) a parameter"
        raise AttributeError(f"{here()}: a p has no {name!r}; {meant}")

    def __truediv__(self, scope: str) -> Params:
        return Params(self.graph, self._path(scope), shared=self._shared, trained=self._trained)

    @property
    def share(self) -> Params:
        """This scope, where parameters that were declared before may be declared again: `p.share / "encoder"` for a
        part that is used again, `p.share("token_embd.weight", n, m)` for tied weights."""
        return Params(self.graph, self.scope, shared=True, trained=self._trained)

    @property
    def frozen(self) -> Params:
        """This scope, where parameters are weights of the file that no optimiser changes; gradients pass through them
        to what was computed before."""
        return Params(self.graph, self.scope, shared=self._shared, trained=False)

    def group(self, pattern: str, *, lr: float = 1.0, decay: float = 1.0) -> None:
        """Multiply the learning rate and the weight decay of the parameters of this scope whose names the pattern
        (* ? []) matches; of several groups the first that matches counts. The file keeps it. What has one axis
        does not decay, whatever its group.

        Raises UsageError for a factor that is not in 0..1e6 and, when all is traced, for a pattern without parameters.
        """
        self.graph.group(self._path(pattern), lr, decay)

    def _path(self, name: str) -> str:
        return f"{self.scope}.{name}" if self.scope else name

    def __call__(self, name: str, *shape: int, init: Initializer | None = None) -> Tensor:
        """Parameter `name` of this scope, float32 `shape`; `init` defaults to normal(0.02).

        Raises UsageError if it was declared before, unless shared; ShapeError if that was with another shape.
        """
        init = normal(STD) if init is None else init
        return self.graph.parameter(self._path(name), shape, init, shared=self._shared, trained=self._trained)

    # -- layers

    def embedding(self, name: str, ids: Tensor, n_vocab: int, n_embd: int, init: Initializer | None = None) -> Tensor:
        """int32 (batch, ctx) -> (batch, ctx, n_embd): rows of the table `name`.weight (n_vocab, n_embd)."""
        table = self(f"{name}.weight", n_vocab, n_embd, init=init)
        rows = ops.get_rows(table, ids.reshape(-1))
        return rows.reshape(*ids.shape, n_embd)

    def linear(
        self, name: str, x: Tensor, n_out: int, *, bias: bool = False, init: Initializer | None = None
    ) -> Tensor:
        """(..., n) -> (..., n_out): x @ `name`.weight (n_out, n) transposed, plus `name`.bias if asked for."""
        y = ops.mul_mat(self(f"{name}.weight", n_out, x.shape[-1], init=init), x)
        return y + self(f"{name}.bias", n_out, init=zeros()) if bias else y

    def conv(
        self,
        name: str,
        x: Tensor,
        n_out: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        init: Initializer | None = None,
    ) -> Tensor:
        """`gg.conv1d` of signals (batch, n_in, length), `gg.conv2d` of images (batch, n_in, height, width), with
        `name`.weight (n_out, n_in / groups, kernel) or (n_out, n_in / groups, kernel, kernel) and, if asked for,
        `name`.bias (n_out,). Raises as they do."""
        n_axes = len(x.shape) - 2
        if n_axes not in (1, 2) or groups < 1 or x.shape[1] % groups:
            what = f"{x!r} is no signals (batch, n_in, length) or images of {groups} groups"
            raise ShapeError(f"{self.graph.here()}: conv {self._path(name)}: {what}")
        w = self(f"{name}.weight", n_out, x.shape[1] // groups, *[kernel] * n_axes, init=init)
        b = self(f"{name}.bias", n_out, init=zeros()) if bias else None
        convolve = convolution.conv1d if n_axes == 1 else convolution.conv2d
        return convolve(x, w, b, stride=stride, padding=padding, dilation=dilation, groups=groups)

    def rms_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        """RMSNorm over the last axis with gain `name`.weight."""
        normed = ops.rms_norm(x, eps)
        return normed * self(f"{name}.weight", x.shape[-1], init=ones())

    def layer_norm(self, name: str, x: Tensor, eps: float, *, bias: bool = True) -> Tensor:
        """LayerNorm over the last axis with gain `name`.weight and, unless not wanted, bias `name`.bias."""
        normed = ops.norm(x, eps)
        scaled = normed * self(f"{name}.weight", x.shape[-1], init=ones())
        return scaled + self(f"{name}.bias", x.shape[-1], init=zeros()) if bias else scaled

    # -- inputs every language model has

    def positions(self, ctx: int, limit: int = 0) -> Tensor:
        """int32 (ctx,): 0, 1, 2, ... A model that knows only so many positions gives their number as `limit`.

        Raises ShapeError if ctx is beyond it; the file keeps it, and so does the runtime.
        """
        if limit:
            self.graph.limit("ctx", limit)
            if ctx > limit:
                raise ShapeError(f"{self.graph.here()}: {int(ctx)} positions, the model takes at most {limit}")
        return self.graph.input("positions", (ctx,), "i32", feed="positions")

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(batch, ctx, n_vocab), int32 (batch, ctx) -> (1,): mean negative log-likelihood, nats per token.

        The mean is weighted by the input `loss_weights` (batch, ctx), 1/n_tokens each unless set; zeros mask. Written
        in ggml's own ops, so that stock ggml can compute it; the runtime runs one fused, stable op instead.
        """
        weights = self.graph.input("loss_weights", targets.shape, "f32", feed="loss_weights")
        self.graph.rename(logits.id, "logits", OUTPUT)
        return losses.weighted_likelihood(logits, targets, weights) * -1.0
