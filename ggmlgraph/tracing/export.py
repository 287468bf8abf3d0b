"""A traced graph becomes a file: `Graph.save`, `ggmlgraph export` and `ggmlgraph convert`.

What the file says about itself, the metadata leaf, is put together here. Weights are streamed into the file as their
initialisers make them, or as they are read from somebody's checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ggmlgraph.core.boundary import pack_params
from ggmlgraph.errors import UnsupportedError, escaped
from ggmlgraph.graphfile import metadata, writer
from ggmlgraph.graphfile.records import Record, leaf, visit
from ggmlgraph.table.dialect import DIALECTS, OUTPUT
from ggmlgraph.tracing import othersizes

if TYPE_CHECKING:
    from ggmlgraph.tracing.tracer import Graph, Node

Weights = Mapping[str, Callable[[], Iterable[NDArray[Any]]]]  # by parameter name: row-major chunks as they are stored


def save(
    graph: Graph,
    path: Path,
    *,
    seed: int,
    weights: Weights | None,
    tokenizer: bytes | None,
    corpus: str | None,
    dialect: str,
    meanwhile: Callable[[Path], object] | None = None,
) -> None:
    """Write graph.bin at once or not at all.

    weights: values of every parameter, instead of initialised ones. tokenizer: `Tokenizer.to_bytes()`, travels as a
    leaf. corpus: what to train on when no data is given. meanwhile: what to do with the written file while the disk
    takes it in.
    Raises UnsupportedError for an op that the dialect's ggml does not have.
    """
    othersizes.check(graph)
    tensors = records(graph, seed, weights)
    roots = [i for i, node in enumerate(graph.nodes) if node.flags & OUTPUT]
    written = {*visit(tensors, roots), *(i for i, r in enumerate(tensors) if r.op == "NONE" and not r.is_param)}
    text = describe(graph, written, corpus, has_flags=DIALECTS[dialect].has_flags).encode()
    metadata.decode(text)  # what we write we can read
    tensors.append(leaf(metadata.LEAF_NAME, text))
    if tokenizer is not None:
        tensors.append(leaf(metadata.TOKENIZER_LEAF, tokenizer))
    writer.write(path, tensors, roots, dialect, meanwhile=meanwhile)


def _names(graph: Graph) -> list[str]:
    return [node.name or f"node_{i}" for i, node in enumerate(graph.nodes)]


def records(graph: Graph, seed: int = 0, weights: Weights | None = None) -> list[Record]:
    """The graph's tensors as a file holds them. Raises UnsupportedError for an op that no ggml has."""
    return [_record(graph, i, name, seed, weights) for i, name in enumerate(_names(graph))]


def describe(graph: Graph, written: Set[int], corpus: str | None, *, has_flags: bool) -> metadata.Metadata:
    """The metadata of the nodes that are written, by their names. has_flags: the file's records carry the flags."""
    names, ids = _names(graph), sorted(written)
    named = [(names[i], graph.nodes[i]) for i in ids]
    flags = {name: node.flags for name, node in named if node.flags}
    return metadata.Metadata(
        model=escaped(graph.model),
        config=_config(graph.config),
        sizes={} if graph.fixed else dict(graph.sizes),
        fixed=escaped(graph.fixed)[: metadata.MAX_TEXT] or None,
        limits=graph.limits,
        inputs={name: node.feed for name, node in named if node.feed},  # type: ignore[misc]
        ranks={node.name: len(node.shape) for _, node in named if node.name},
        exprs={names[i]: found for i in ids if (found := graph.exprs(i))},
        exact={name: node.op.name for name, node in named if node.op and node.op.exact},
        dropout={names[i]: rate for i, rate in graph.dropouts.items() if i in written},
        where={name: escaped(node.where)[-metadata.MAX_TEXT :] for name, node in named if node.op},
        corpus=corpus,
        groups=tuple(group for group, _ in graph.groups),
        initializers={name: node.initializer.spec for name, node in named if node.initializer},
        flags={} if has_flags else dict(sorted(flags.items())),
    )


def _config(config: Any) -> dict[str, metadata.Scalar]:
    """The fields of a config, those that are no single values as Python shows them."""
    fields = dataclasses.asdict(config) if dataclasses.is_dataclass(config) and not isinstance(config, type) else {}
    return {name: _scalar(value) for name, value in fields.items()}


def _scalar(value: Any) -> metadata.Scalar:
    if value is None or type(value) in (bool, int, float):
        return value  # type: ignore[no-any-return]
    return escaped(value if isinstance(value, str) else repr(value))[: metadata.MAX_TEXT]


def _record(graph: Graph, i: int, name: str, seed: int, weights: Weights | None) -> Record:
    node = graph.nodes[i]
    if node.op is not None and node.op.ggml is None:
        instead = "write it in ggml's ops, of which the runtime makes its own where it has one"
        raise UnsupportedError(f"{node.where}: ggml has no op {node.op.name}, so no file can have it; {instead}")
    return Record(
        name,
        node.dtype.upper(),
        *graph.core.file_layout(i),
        op="NONE" if node.op is None else str(node.op.ggml),
        unary=None if node.op is None else node.op.unary,
        flags=node.flags,
        op_params=b"" if node.op is None else pack_params(node.op, node.params),
        src=node.src,
        data=_weights(node, name, seed, weights) if node.initializer else _constant(node),
    )


def _constant(node: Node) -> Callable[[], Iterable[bytes]] | None:
    return None if node.values is None else partial(iter, [node.values])


def _weights(node: Node, name: str, seed: int, weights: Weights | None) -> Callable[[], Iterator[memoryview]]:
    def chunks() -> Iterator[memoryview]:
        assert node.initializer is not None
        for values in weights[name]() if weights else node.initializer.chunks(name, node.shape, seed):
            yield values.data.cast("B")

    return chunks
