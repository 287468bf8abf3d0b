"""`group_norm` in torch's order of axes. Used by models."""

from __future__ import annotations

from ggmlgraph.errors import ShapeError, UsageError
from ggmlgraph.table import ops
from ggmlgraph.tracing.tensor import Tensor


def group_norm(
    x: Tensor, n_groups: int, gain: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Mean 0 and variance 1 of each sample's groups of channels, then gain and bias of each channel (Wu & He 2018).

    x: (batch, n_channels), with up to two axes more; gain, bias: (n_channels,) -> shape of x. As
    torch.nn.functional.group_norm. Raises ShapeError, and UsageError where n_groups does not divide the channels.
    """
    where = f"{x.graph.here()}: group_norm: "
    if not 2 <= len(x.shape) <= 4:
        raise ShapeError(f"{where}x = {x!r} is not (batch, n_channels) with up to two axes more")
    batch, n_channels, *places = x.shape
    if not isinstance(n_groups, int) or n_groups < 1 or n_channels % n_groups:
        raise UsageError(f"{where}n_groups is {n_groups!r}, not a number that divides the {n_channels} channels")
    y = ops.group_norm(x.reshape(batch, n_channels, *[1] * (2 - len(places)), *places), n_groups, eps)
    for name, each in (("gain", gain), ("bias", bias)):
        if each is not None and each.shape != (n_channels,):
            raise ShapeError(f"{where}{name} = {each!r} is not one number for each of {n_channels} channels")
    y = y if gain is None else y * gain.reshape(n_channels, 1, 1)
    y = y if bias is None else y + bias.reshape(n_channels, 1, 1)
    return y.reshape(*x.shape)
