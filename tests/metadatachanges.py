"""Changed metadata of real graphs, through the decoder, the checks against the graph, and re-sizing.

Whatever the leaf says, it is refused by a typed error of one line, or the graph has what it says and can be opened,
fed and re-sized without another kind of error. Used by test_metadata_of_graphs.py and, as long as one likes, by
`make fuzz`:

    python tests/metadatachanges.py SECONDS [SEED]
"""

from __future__ import annotations

import copy
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ggmlgraph as gg
from ggmlgraph.core import passes
from ggmlgraph.core.graph import CoreGraph
from ggmlgraph.core.importer import apply_flags, check_metadata, import_file, resize
from ggmlgraph.errors import FormatError, GGError, UnsupportedError
from ggmlgraph.graphfile import metadata, reader
from ggmlgraph.models import gpt2, gpt_neox, llama

SMALL: dict[str, Any] = {"n_vocab": 7, "n_embd": 16, "n_head": 2, "n_layer": 1, "n_ff": 8}
TEXTS: tuple[Any, ...] = (
    "", "x", "tokens", "loss", "logits", "node_3", "token_embd.weight", "ggmlgraph.metadata", "targets", "positions",
    "loss_weights", "ctx", "batch", "batch*ctx", "ctx//2", "ctx-ctx", "2*ctx", "1//0", "(((", "ctx*ctx*ctx*ctx", "-1",
    "0", "gelu_erf", "gelu", "../x", "/etc/passwd", "builtin:sine", "\x1b[31m", "\x07", "\u202e", "\u2028", "a" * 5000,
    "\ud800",
)  # fmt: skip
NUMBERS = (
    0, 1, 2, 3, 7, 8, -1, 64, 1 << 20, 1 << 31, 1 << 40, (1 << 40) + 1, 1 << 63, 1 << 64, 10**30, 0.0, 1.5, 1e308, -0.0,
)  # fmt: skip
OTHERS = (None, True, False, [], {}, [[]], {"x": {}}, ["ctx", None, None, None], {"ne": ["ctx", "batch", None, None]})
Json = Any


class Sample:
    """A graph with its metadata, as JSON."""

    def __init__(self, path: Path, dialect: str) -> None:
        self.graph = import_file(path, dialect)
        at = self.graph.find(metadata.LEAF_NAME)
        self.meta = json.loads(bytes(self.graph.leaf_bytes(at)))
        self.names = [self.graph.name(i) for i in range(len(self.graph))]

    def copied(self) -> CoreGraph:
        return passes.copy(self.graph)


def samples() -> list[Sample]:
    """Small models, one in a dialect without flags, one of fixed size, and one that says no more than its name."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for model, dialect in ((llama, "v2"), (gpt2, "v2"), (gpt_neox, "v1")):
            path = Path(folder) / "graph.bin"
            fields = SMALL | ({"n_ctx": 9} if model is gpt2 else {})
            known = {name: value for name, value in fields.items() if name in model.Config.__dataclass_fields__}
            gg.trace(model.loss, model.Config(**known), batch=2, ctx=4).save(path, dialect=dialect)
            found.append(Sample(path, reader.read(path, dialect).dialect))
    return found


# ---------------------------------------------------------------- changes


def places(value: Json, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value inside a JSON value is, by keys."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def changed(sample: Sample, rng: random.Random) -> bytes:
    meta = copy.deepcopy(sample.meta)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change(meta, sample, rng)
    data = json.dumps(meta, ensure_ascii=rng.random() < 0.5, allow_nan=rng.random() < 0.1).encode(
        errors="surrogatepass"
    )
    if rng.random() < 0.1:
        at = rng.randrange(len(data))
        data = data[:at] + bytes([rng.randrange(256)]) + data[at + rng.choice((0, 1, 1, 4)) :]
    return data


def _change(meta: Json, sample: Sample, rng: random.Random) -> None:
    """One value or key becomes another, goes, or comes."""
    *path, key = rng.choice([place for place in places(meta) if place])
    inside = meta
    for step in path:
        inside = inside[step]
    kind = rng.randrange(6)
    if kind == 0:
        del inside[key]
    elif kind == 1 and isinstance(inside, dict):
        inside[rng.choice((*sample.names, *TEXTS, *metadata.Metadata.__struct_fields__))] = inside.pop(key)
    elif kind == 2 and isinstance(inside, dict):
        inside[rng.choice((*sample.names, *TEXTS))] = rng.choice((inside[key], *TEXTS, *NUMBERS))
    elif kind == 3:
        inside[key] = rng.choice((*OTHERS, *NUMBERS))
    elif isinstance(inside[key], int) and kind == 4:
        inside[key] += rng.choice((-1, 1, 1 << 20))
    else:
        inside[key] = rng.choice((*sample.names, *TEXTS))


# ---------------------------------------------------------------- what becomes of them


def verdict(sample: Sample, data: bytes, rng: random.Random) -> str:
    """ "accepted", or the code of the refusal. Raises AssertionError for a refusal that is not as it should be."""
    try:
        meta = metadata.decode(data)
        check_metadata(sample.graph, meta)
    except (FormatError, UnsupportedError) as error:
        assert error.code in ("BadMetadata", "AmbiguousName"), data
        assert str(error).isprintable(), data
        return error.code
    _use(sample.copied(), meta, rng)
    return "accepted"


def _use(graph: CoreGraph, meta: metadata.Metadata, rng: random.Random) -> None:
    """What opening a file does with its metadata."""
    apply_flags(graph, meta)
    for name, feed in meta.inputs.items():
        leaf = graph.find(name)
        assert graph.op(leaf) == "none", feed
        assert len(graph.leaf_bytes(leaf)) > 0
    same = resize(graph, meta, meta.sizes)
    assert all(graph.shape(i) == same.shape(i) for i in range(len(graph)))
    try:
        resize(graph, meta, {name: rng.choice((1, 2, 3, value, 64)) for name, value in meta.sizes.items()})
    except GGError as error:
        assert str(error).isprintable()


def try_changes(n: int | None, seconds: float, seed: int) -> Counter[str]:
    """Verdicts over n changed leafs, or as many as take so long."""
    rng = random.Random(seed)
    found, verdicts = samples(), Counter[str]()
    end = time.monotonic() + seconds
    while verdicts.total() < n if n is not None else time.monotonic() < end:
        sample = rng.choice(found)
        verdicts[verdict(sample, changed(sample, rng), rng)] += 1
    return verdicts


if __name__ == "__main__":
    verdicts = try_changes(None, float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns())
    print(f"metadata: {verdicts.total()} changed leafs, no other error; {dict(verdicts.most_common())}")
