"""What a graph file does not say about itself: which leafs are trained, which take data, and what the loss is.

Files of ours say it; those that other programs export with ggml mostly do not, so whoever trains them says it here:
`Runtime(path, roles=Roles(...))` and the options of `ggmlgraph train`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import msgspec

from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.errors import UsageError
from ggmlgraph.graphfile import metadata
from ggmlgraph.graphfile.metadata import Metadata
from ggmlgraph.table.dialect import INPUT, LOSS, OUTPUT, PARAM
from ggmlgraph.table.op import TABLE

TARGETS, LOSS_WEIGHTS, CROSS_ENTROPY = "ggmlgraph.targets", "ggmlgraph.loss_weights", "ggmlgraph.loss"
LOGITS = "ggmlgraph.logits"  # where they have no name
SHOWN = 12  # names in a message


@dataclass(frozen=True)
class Roles:
    """`params`: patterns (* ? []) of names of float32 leafs to train, none: those that the file marks. `inputs`: leafs
    that take data. `loss`: the scalar to minimise, default the one that is marked or called loss. With `targets`,
    `loss` names logits (..., n_classes), default the tensor called logits, or their softmax; the loss is then the
    cross-entropy with class numbers, the new int32 input `ggmlgraph.targets` (...). `frozen`: patterns of names of
    parameters that are not trained, whatever else is said.
    """

    params: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    loss: str | None = None
    targets: bool = False
    frozen: tuple[str, ...] = ()


def assign(graph: CoreGraph, meta: Metadata, roles: Roles) -> Metadata:
    """Give the tensors of a graph their roles; the metadata of the graph it then is. Raises UsageError."""
    for name in roles.inputs:
        _add_flags(graph, _leaf(graph, name), INPUT)
    _set_params(graph, roles)
    if roles.targets:
        return _append_cross_entropy(graph, meta, roles)
    _set_loss(graph, _find_loss(graph, roles.loss))
    return meta


def _add_flags(graph: CoreGraph, tensor_id: int, flags: int) -> None:
    graph.set_flags(tensor_id, graph.flags(tensor_id) | flags)


def _names(graph: CoreGraph, ids: Iterable[int]) -> str:
    names = [graph.name(i) for i in ids]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _leafs(graph: CoreGraph) -> Iterator[int]:
    return (i for i in range(len(graph)) if graph.is_leaf(i) and graph.name(i) != metadata.LEAF_NAME)


def _leaf(graph: CoreGraph, name: str) -> int:
    found = graph.find(name)
    if found < 0 or not graph.is_leaf(found):
        raise UsageError(f"the graph has no leaf {name!r} to put data in; its leafs are {_names(graph, _leafs(graph))}")
    return found


def _set_params(graph: CoreGraph, roles: Roles) -> None:
    _choose_params(graph, roles)
    params = [i for i in _leafs(graph) if graph.flags(i) & PARAM]
    frozen = {i for pattern in roles.frozen for i in _matches(graph, params, pattern)}
    if frozen.issuperset(params):
        raise UsageError("every parameter is frozen: there is nothing to train")
    for i in frozen:
        graph.set_flags(i, graph.flags(i) & ~PARAM)


def _choose_params(graph: CoreGraph, roles: Roles) -> None:
    if not roles.params:
        if not any(graph.flags(i) & PARAM for i in _leafs(graph)):
            raise UsageError(f"the graph does not say what is trained; its leafs are {_names(graph, _leafs(graph))}")
        return
    weights = [i for i in _leafs(graph) if graph.dtype(i) == "f32" and not graph.flags(i) & INPUT]
    chosen = {i for pattern in roles.params for i in _matches(graph, weights, pattern)}
    for i in _leafs(graph):
        graph.set_flags(i, graph.flags(i) & ~PARAM | (PARAM if i in chosen else 0))


def _matches(graph: CoreGraph, weights: list[int], pattern: str) -> list[int]:
    found = [i for i in weights if fnmatchcase(graph.name(i), pattern)]
    if not found:
        raise UsageError(f"no float32 leaf is called {pattern!r}; there are {_names(graph, weights)}")
    return found


def answers_of(graph: CoreGraph) -> str | None:
    """Name of the logits of a graph that was given targets: the largest one is the answer."""
    loss = graph.find(CROSS_ENTROPY)
    return None if loss < 0 else graph.name(graph.src(loss)[0])


# ---------------------------------------------------------------- the loss


def _find_loss(graph: CoreGraph, name: str | None) -> int:
    marked = [i for i in range(len(graph)) if graph.flags(i) & LOSS]
    if name is None and len(marked) == 1:
        return marked[0]
    return _computed(graph, name or "loss")


def _computed(graph: CoreGraph, name: str) -> int:
    found = graph.find(name)
    if found < 0 or graph.is_leaf(found):
        scalars = [i for i in range(len(graph)) if not graph.is_leaf(i) and graph.shape(i) == (1,)]
        raise UsageError(
            f"the graph computes no {name!r}; single numbers it computes: {_names(graph, scalars) or 'none'}"
        )
    return found


def _set_loss(graph: CoreGraph, loss: int) -> None:
    if graph.shape(loss) != (1,) or graph.dtype(loss) != "f32":
        what = f"{graph.dtype(loss)}{list(graph.shape(loss))}"
        raise UsageError(f"the loss {graph.name(loss)!r} is {what}, not one float32; give targets if these are logits")
    for i in range(len(graph)):
        graph.set_flags(i, graph.flags(i) & ~LOSS | (LOSS if i == loss else 0))


def _append_cross_entropy(graph: CoreGraph, meta: Metadata, roles: Roles) -> Metadata:
    logits = _computed(graph, roles.loss or "logits")
    if graph.op(logits) == "soft_max":
        logits = graph.src(logits)[0]
    shape = graph.shape(logits, 4)[:-1]
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    targets, weights = graph.leaf("i32", shape, INPUT, TARGETS), graph.leaf("f32", shape, INPUT, LOSS_WEIGHTS)
    if not graph.name(logits):
        graph.set_name(logits, LOGITS)
    loss = graph.node(TABLE["cross_entropy"], [logits, targets, weights], {"scale": -1.0})
    graph.set_name(loss, CROSS_ENTROPY)
    _add_flags(graph, logits, OUTPUT)  # to be read after a run
    _set_loss(graph, loss)
    return msgspec.structs.replace(meta, inputs={**meta.inputs, TARGETS: "targets", LOSS_WEIGHTS: "loss_weights"})
