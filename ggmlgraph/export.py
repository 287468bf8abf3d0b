"""A traced graph becomes a file: `Graph.save` and `ggmlgraph export`.

What the file says about itself, the metadata leaf, is put together here. Weights are streamed into the file as their
initialisers make them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from ggmlgraph import cgraph, metadata
from ggmlgraph.core import pack_params
from ggmlgraph.dialect import OUTPUT
from ggmlgraph.errors import UnsupportedError
from ggmlgraph.tracer import Graph, Node

TOKENIZER_LEAF = "ggmlgraph.tokenizer"
ALIGNMENT = 16


def save(graph: Graph, path: Path, *, seed: int, tokenizer: bytes | None, corpus: str | None) -> None:
    """Write graph.bin in dialect v2, at once or not at all.

    tokenizer: `Tokenizer.to_bytes()`, travels as a leaf. corpus: what to train on when no data is given.
    Raises UnsupportedError for an op that stock ggml does not have.
    """
    names = [node.name or f"node_{i}" for i, node in enumerate(graph.nodes)]
    records = [_record(graph, i, names[i], seed) for i in range(len(graph.nodes))]
    records.append(_leaf(metadata.LEAF_NAME, describe(graph, names, corpus).encode()))
    if tokenizer is not None:
        records.append(_leaf(TOKENIZER_LEAF, tokenizer))
    roots = [i for i, node in enumerate(graph.nodes) if node.flags & OUTPUT]
    cgraph.write(path, records, roots)


def describe(graph: Graph, names: list[str], corpus: str | None) -> metadata.Metadata:
    """The graph's metadata, by names of tensors."""
    named = list(enumerate(zip(names, graph.nodes, strict=True)))
    exprs = {name: graph.exprs(i) for i, (name, _) in named}
    return metadata.Metadata(
        model=graph.model,
        config=dataclasses.asdict(graph.config) if dataclasses.is_dataclass(graph.config) else {},  # type: ignore[arg-type]
        sizes={} if graph.fixed else dict(graph.sizes),
        fixed=graph.fixed or None,
        inputs={name: node.feed for _, (name, node) in named if node.feed},  # type: ignore[misc]
        exprs={name: metadata.SizeExpressions(tuple(e[0]), e[1]) for name, e in exprs.items() if e},  # type: ignore[arg-type]
        exact={name: node.op.name for _, (name, node) in named if node.op and node.op.exact},
        where={name: node.where for _, (name, node) in named if node.op},
        corpus=corpus,
        initializers={name: node.initializer.spec for _, (name, node) in named if node.initializer},
    )


def _record(graph: Graph, i: int, name: str, seed: int) -> cgraph.Record:
    node, t = graph.nodes[i], graph.core.tensor(i)
    if node.op is not None and node.op.ggml is None:
        raise UnsupportedError(f"{node.where}: ggml has no op {node.op.name}")
    ne, nb = tuple(t.ne), tuple(t.nb)
    return cgraph.Record(
        name=name,
        type=node.dtype.upper(),
        ne=ne,
        nb=nb,
        op="NONE" if node.op is None else str(node.op.ggml),
        unary=None if node.op is None else node.op.unary,
        flags=node.flags,
        op_params=b"" if node.op is None else pack_params(node.op, node.params),
        src=node.src,
        data=_weights(node, name, seed) if node.initializer else None,
    )


def _weights(node: Node, name: str, seed: int) -> Callable[[], Iterator[bytes]]:
    def chunks() -> Iterator[bytes]:
        assert node.initializer is not None
        for values in node.initializer.chunks(name, node.shape, seed):
            yield values.tobytes()

    return chunks


def _leaf(name: str, payload: bytes) -> cgraph.Record:
    payload += b"\0" * (-len(payload) % ALIGNMENT)
    n = len(payload)
    data: Callable[[], Iterable[bytes]] = partial(iter, [payload])
    return cgraph.Record(name, "I8", (n, 1, 1, 1), (1, n, n, n), data=data)
