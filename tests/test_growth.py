"""The time of every reader of files is in proportion to the file: each structure is grown sixteenfold.

A reader that is quadratic in a structure takes 256 times as long for the larger file, a linear one 16 times. Whether
the file is taken or refused does not matter, only how long the verdict takes.
"""

from __future__ import annotations

import base64
import json
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import checkpoints as ck
import msgspec
import numpy as np
import pytest
from handmade import File

from ggmlgraph.core.importer import identify, import_file, read_metadata
from ggmlgraph.data.corpus import open_source
from ggmlgraph.errors import GGError
from ggmlgraph.graphfile import metadata, reader
from ggmlgraph.graphfile.records import leaf
from ggmlgraph.interchange.formats import gguf, safetensors, torch
from ggmlgraph.interchange.sources.base import read_yaml
from ggmlgraph.interchange.tokenizer import load_tokenizer
from ggmlgraph.tokenizers import spm
from ggmlgraph.tokenizers.jsonfile import read_json
from ggmlgraph.tokenizers.leaf import tokenizer_from_bytes

TIMES = 16  # as large
SLOWER = 80  # at most, where that much larger: between 16 and 256
LEAST_S = 0.005  # below this a time says nothing

WEIGHT = np.zeros(1, "<f4")
STORAGE = ck.storage("0", "FloatStorage", 1)
M61 = (1 << 61) - 1  # Python's hash of an integer is its remainder by this


def zipped(pickle: bytes) -> bytes:
    return ck.zip_bytes(list(ck.torch_entries({"a": WEIGHT}, pickle).items()))


def torch_of(body: Callable[[int], bytes]) -> Callable[[int], bytes]:
    return lambda n: zipped(ck.pickled(body(n)))


def large_keys(n: int) -> bytes:
    return b"}(" + b"".join(b"\x8a\x10" + (i * M61).to_bytes(16, "little", signed=True) + b"N" for i in range(n)) + b"u"


def shapes(n: int) -> bytes:
    """A tuple of n numbers, which n tensors want for a shape."""
    calls = b"".join(ck.called("torch.Size") + b"h\x00\x85R0" for _ in range(n))
    return b"(" + b"K\x01" * n + b"tq\x00" + calls.replace(b"0", b"")


def shared_dictionary(n: int) -> bytes:
    """A dictionary of n values, n times in a list."""
    return b"](" + ck.dictionary({str(i): b"N" for i in range(n)}) + b"q\x00" + b"h\x00" * n + b"e"


def zip_of_fields(n: int) -> bytes:
    """Entries whose extra fields are as many and as small as they can be."""
    extra, body, directory = struct.pack("<2H", 9, 0) * 16000, b"", b""
    for i in range(n):
        name = b"m/%d" % i
        rest = (0, 0, 0, len(name), len(extra))
        directory += (
            struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, *rest, 0, 0, 0, 0, len(body)) + name + extra
        )
        body += struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, *rest) + name + extra
    return body + directory + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, n, n, len(directory), len(body), 0)


def old_file(n: int) -> bytes:
    """One long key, n times in the list of storages."""
    parts = ck.legacy_parts({"a": WEIGHT})
    keys = ck.pickled(b"](" + ck.text("a" * n) + b"q\x00" + b"h\x00" * n + b"e")
    return b"".join([*parts[:4], keys, *parts[5:]])


def tensors(n: int) -> dict[str, np.ndarray]:
    return {f"t{i}": WEIGHT for i in range(n)}


def safetensors_of(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def gguf_pairs(n: int) -> bytes:
    return ck.gguf_bytes({f"k{i}": i for i in range(n)}, {})


def gguf_array(kind: int, element: bytes) -> Callable[[int], bytes]:
    array = struct.pack("<II", 9, kind)
    return lambda n: (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + ck.gguf_string(b"k") + array + struct.pack("<Q", n) + element * n
    )


def graph(n_leafs: int, n_nodes: int, meta: dict[str, object] | None = None) -> File:
    f = File()
    for i in range(n_leafs):
        f.leaf(f"leaf {i}", [0.0])
    at = 0
    for i in range(n_nodes):
        at = f.node(f"node {i}", "SQR", (1,), at)
    if meta is not None:
        f.records.append(leaf(metadata.LEAF_NAME, json.dumps({"model": "m", **meta}).encode()))
    return f


def saved(f: File) -> bytes:
    path = Path("grown.bin")
    f.save(path)
    return path.read_bytes()


def views(n: int) -> bytes:
    f = File()
    at = f.leaf("x", np.zeros(8))
    for i in range(n):
        at = f.view(f"v{i}", at, (8,), 0, (1,))
    f.node("y", "SUM", (1,), at)
    return saved(f)


def said(**fields: object) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def pieces(n: int) -> bytes:
    model = spm.SpmModel()
    model.pieces = ["<unk>", "<s>", "</s>", *(f"p{i}" for i in range(n))]
    model.types = [spm.UNKNOWN, spm.CONTROL, spm.CONTROL, *[spm.NORMAL] * n]
    model.scores = [0.0] * len(model.pieces)
    return spm.write(model)


def tokenizer_json(n_tokens: int, n_merges: int, n_added: int) -> bytes:
    vocabulary = {"a": 0, "aa": 1} | {chr(0x100 + i): i for i in range(2, n_tokens)}
    return msgspec.json.encode(
        {
            "version": "1.0",
            "added_tokens": [
                {"id": n_tokens + i, "content": f"<{i}>", "special": True, "single_word": False, "lstrip": False,
                 "rstrip": False, "normalized": False} for i in range(n_added)
            ],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": ["a a"] * n_merges},
        }
    )  # fmt: skip


def read_graph(path: Path) -> object:
    return read_metadata(import_file(path))


def read_leaf(path: Path) -> object:
    return metadata.decode(path.read_bytes())


READERS: dict[str, tuple[Callable[[Path], object], Callable[[int], bytes], int]] = {
    # what grows: the reader, a file with n of it, the first n
    "torch: tensors": (
        torch.read,
        torch_of(lambda n: ck.dictionary({f"a{i}": ck.tensor(STORAGE, (1,)) for i in range(n)})),
        500,
    ),
    "torch: numbers": (torch.read, torch_of(lambda n: b"](" + b"K\1" * n + b"e"), 4000),
    "torch: nothing on nothing": (torch.read, torch_of(lambda n: b"N" * n), 8000),
    "torch: tuples in tuples": (torch.read, torch_of(lambda n: b"N" + b"\x85" * n), 2000),
    "torch: tuples in tuples, named": (
        torch.read,
        torch_of(lambda n: b"N" + b"\x85" * n + ck.text("b") + b"\x93"),
        2000,
    ),
    "torch: pairs of pairs": (torch.read, torch_of(lambda n: b"N" + b"q\x00h\x00\x86" * n), 2000),
    "torch: pairs of pairs, named": (
        torch.read,
        torch_of(lambda n: b"N" + b"q\x00h\x00\x86" * n + ck.text("b") + b"\x93"),
        2000,
    ),
    "torch: lists in lists": (torch.read, torch_of(lambda n: b"]" * n + b"a" * (n - 1)), 2000),
    "torch: a list in itself": (torch.read, torch_of(lambda n: b"]q\x00" + b"h\x00a" * n), 2000),
    "torch: keys that collide": (torch.read, torch_of(large_keys), 1000),
    "torch: a long shape again and again": (torch.read, torch_of(shapes), 1000),
    "torch: a dictionary again and again": (torch.read, torch_of(shared_dictionary), 1000),
    "torch: a long name again and again": (
        torch.read,
        torch_of(lambda n: ck.text("a" * n) + b"q\x00" + b"h\x00h\x00\x93" * n),
        1000,
    ),
    "torch: storages": (
        torch.read,
        torch_of(lambda n: b"](" + b"".join(ck.storage(str(i), "FloatStorage", 1) for i in range(n)) + b"e"),
        500,
    ),
    "torch: marks": (torch.read, torch_of(lambda n: b"(" * n + b"t" * n), 2000),
    "torch: entries": (torch.read, lambda n: ck.zip_bytes([(f"m/data/{i}", b"") for i in range(n)]), 300),
    "torch: extra fields": (torch.read, zip_of_fields, 2),
    "torch: old, keys": (torch.read, old_file, 1000),
    "safetensors: tensors": (
        safetensors.read,
        lambda n: safetensors_of(json.dumps(ck.safetensors_header(tensors(n))).encode()) + bytes(4 * n),
        500,
    ),
    "safetensors: axes": (
        safetensors.read,
        lambda n: (
            safetensors_of(json.dumps({"a": {"dtype": "F32", "shape": [1] * n, "data_offsets": [0, 4]}}).encode())
            + bytes(4)
        ),
        4000,
    ),
    "safetensors: depth": (safetensors.read, lambda n: safetensors_of(b'{"a":' + b"[" * n + b"]" * n + b"}"), 4000),
    "safetensors: digits": (safetensors.read, lambda n: safetensors_of(b'{"a":' + b"9" * n + b"}"), 4000),
    "safetensors: notes": (
        safetensors.read,
        lambda n: safetensors_of(json.dumps({"__metadata__": {str(i): "" for i in range(n)}}).encode()),
        2000,
    ),
    "gguf: keys": (gguf.read, gguf_pairs, 500),
    "gguf: strings": (gguf.read, gguf_array(8, ck.gguf_string(b"a")), 2000),
    "gguf: numbers": (gguf.read, gguf_array(4, b"\1\0\0\0"), 20000),
    "gguf: tensors": (gguf.read, lambda n: ck.gguf_bytes({}, tensors(n)), 500),
    "graph: leafs": (read_graph, lambda n: saved(graph(n, 0)), 200),
    "graph: nodes": (read_graph, lambda n: saved(graph(1, n)), 200),
    "graph: views of views": (read_graph, views, 200),
    "graph, dialects: nodes": (identify, lambda n: saved(graph(1, n)), 200),
    "graph, in Python: leafs": (lambda path: reader.read(path), lambda n: saved(graph(n, 0)), 100),
    "graph, in Python: nodes": (lambda path: reader.read(path), lambda n: saved(graph(1, n)), 100),
    "metadata: inputs": (read_leaf, lambda n: said(inputs={str(i): "tokens" for i in range(n)}), 2000),
    "metadata: sizes": (read_leaf, lambda n: said(sizes={f"s{i}": 1 for i in range(n)}), 2000),
    "metadata: config": (read_leaf, lambda n: said(config={f"c{i}": "x" for i in range(n)}), 2000),
    "metadata: places": (read_leaf, lambda n: said(where={str(i): "a.py:1" for i in range(n)}), 2000),
    "metadata: expressions": (
        read_leaf,
        lambda n: said(exprs={str(i): {"ne": ["ctx*" * 60 + "2"] * 4} for i in range(n)}),
        50,
    ),
    "metadata: unknown, deep": (read_leaf, lambda n: b'{"model":"m","x":' + b"[" * n + b"]" * n + b"}", 4000),
    "metadata in a graph: places": (
        read_graph,
        lambda n: saved(graph(n, 0, {"where": {f"leaf {i}": "a.py:1" for i in range(n)}})),
        200,
    ),
    "metadata in a graph: expressions": (
        read_graph,
        lambda n: saved(graph(n, 0, {"exprs": {f"leaf {i}": {} for i in range(n)}})),
        200,
    ),
    "tokenizer: pieces": (load_tokenizer, pieces, 1000),
    "tokenizer: tokens": (load_tokenizer, lambda n: tokenizer_json(n, 0, 0), 1000),
    "tokenizer: merges": (load_tokenizer, lambda n: tokenizer_json(300, n, 0), 1000),
    "tokenizer: added tokens": (load_tokenizer, lambda n: tokenizer_json(300, 0, n), 100),
    "tokenizer: depth": (load_tokenizer, lambda n: b'{"a":' * n, 4000),
    "tokenizer: ranks": (
        load_tokenizer,
        lambda n: b"".join(b"%s %d\n" % (base64.b64encode(b"%d" % i), i) for i in range(n)),
        2000,
    ),
    "tokenizer: alphabet": (lambda path: tokenizer_from_bytes(path.read_bytes()), lambda n: _alphabet(n), 2000),
    "json: keys": (read_json, lambda n: json.dumps({str(i): i for i in range(n)}).encode(), 5000),
    "json: depth": (read_json, lambda n: b'{"a":' * n, 5000),
    "yaml: keys": (read_yaml, lambda n: b"".join(b"k%d: 1\n" % i for i in range(n)), 1000),
    "yaml: spaces": (read_yaml, lambda n: b" " * n + b"k: 1\n", 5000),
    "text: a line": (lambda path: list(open_source(path).lines()), lambda n: b"a" * n, 1 << 20),
    "text: lines": (lambda path: list(open_source(path).lines()), lambda n: b"\n" * n, 20000),
}


def _alphabet(n: int) -> bytes:
    payload = "".join(chr(0x4E00 + i) for i in range(n)).encode()
    return json.dumps({"kind": "chars", "nbytes": len(payload)}).encode() + b"\n" + payload


def seconds(read: Callable[[Path], object], path: Path) -> float:
    """Of the processor, the least of three; less if the first is long."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        with suppress(GGError):
            read(path)
        best = min(best, time.process_time() - start)
        if best > 1:
            break
    return best


@pytest.mark.parametrize("what", READERS)
def test_a_reader_takes_time_in_proportion_to_the_file(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    read, make, n = READERS[what]
    taken = []
    for size in (n, TIMES * n):
        path = tmp_path / f"{size}"
        path.write_bytes(make(size))
        taken.append(seconds(read, path))
    assert taken[1] < SLOWER * max(taken[0], LEAST_S), taken
