"""The metadata leaf: what is written is read, and nothing else than metadata is accepted."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggmlgraph.errors import FormatError, GGError, UnsupportedError
from ggmlgraph.metadata import MAX_NBYTES, Metadata, SizeExpressions, decode

EXAMPLE = Metadata(
    model="llama",
    config={"n_layer": 4, "norm_eps": 1e-5, "tied": True, "note": "a", "rope_scale": None},
    sizes={"batch": 16, "ctx": 64},
    inputs={"tokens": "tokens", "targets": "targets", "w": "loss_weights", "pos": "positions"},
    exprs={
        "tokens": SizeExpressions(ne=("ctx", "batch", None, None)),
        "node_7": SizeExpressions(ne=(None, "batch*ctx", None, None), offset="4*ctx"),
    },
    exact={"node_9": "gelu_erf"},
    where={"node_9": "models/gpt_neox.py:41"},
    corpus="builtin:sine",
    initializers={"wte": "normal(0.02)"},
)

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | NAMES
)


def test_what_is_encoded_is_decoded() -> None:
    assert decode(EXAMPLE.encode()) == EXAMPLE


@given(NAMES, st.dictionaries(NAMES, SCALARS), st.dictionaries(NAMES, st.integers(1, 1 << 40)))
def test_any_config_and_sizes_survive(model: str, config: dict[str, Any], sizes: dict[str, int]) -> None:
    metadata = Metadata(model=model, config=config, sizes=sizes)
    decoded = decode(metadata.encode())
    assert decoded == metadata
    assert {name: type(value) for name, value in decoded.config.items()} == {n: type(v) for n, v in config.items()}


@pytest.mark.parametrize("model", ["", "a", "four", "ラマ"])
def test_the_bytes_are_json_padded_to_whole_blocks_of_16(model: str) -> None:
    data = Metadata(model=model).encode()
    assert len(data) % 16 == 0
    assert json.loads(data)["model"] == model


def test_a_graph_that_cannot_be_resized_says_why() -> None:
    assert decode(Metadata(model="m", fixed="a.py:3: size 7").encode()).fixed == "a.py:3: size 7"


def test_unknown_fields_are_ignored() -> None:
    assert decode(b'{"model": "m", "added_later": {"x": [1, 2]}}') == Metadata(model="m")


def test_a_newer_version_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="version 2; this ggmlgraph reads version 1"):
        decode(b'{"model": "m", "version": 2}')


@pytest.mark.parametrize(
    "text",
    [
        b"", b"    ", b"null", b"[]", b"{}", b"\0" * 16, b"\xff\xfe", b'{"model": "\xff"}', b'{"model": 3}',
        b'{"model": "m"} {}', b'{"model": "m"', b'{"model": "m", "version": 0}', b'{"model": "m", "version": 1.5}',
        b'{"model": "m", "sizes": {"ctx": 0}}', b'{"model": "m", "sizes": {"ctx": 1099511627777}}',
        b'{"model": "m", "sizes": {"ctx": true}}', b'{"model": "m", "inputs": {"x": "eval"}}',
        b'{"model": "m", "config": {"x": [1]}}', b'{"model": "m", "config": {"x": 1e999}}',
        b'{"model": "m", "config": {"x": ' + b"9" * 5000 + b"}}",
        b'{"model": "m", "exprs": {"x": {"ne": ["ctx"]}}}', b'{"model": "m", "exprs": {"x": {"ne": [1, 2, 3, 4]}}}',
        b'{"model": "m", "exact": {"x": null}}', b'{"model": "m", "where": []}', b'{"model": "m", "x": ' + b"[" * 10**6,
    ],
)  # fmt: skip
def test_malformed_metadata_are_a_format_error(text: bytes) -> None:
    with pytest.raises(FormatError):
        decode(text)


def test_metadata_beyond_the_size_cap_are_refused() -> None:
    data = Metadata(model="m").encode()
    assert decode(data.ljust(MAX_NBYTES)).model == "m"
    with pytest.raises(FormatError, match="at most"):
        decode(data.ljust(MAX_NBYTES + 1))


def test_any_changed_byte_gives_metadata_or_a_typed_error() -> None:
    data = EXAMPLE.encode()
    for at in range(len(data)):
        for change in (0x01, 0x20, 0x80, 0xFF):
            with contextlib.suppress(GGError):
                decode(data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])


@given(st.binary(max_size=200))
def test_any_bytes_give_metadata_or_a_typed_error(data: bytes) -> None:
    with contextlib.suppress(GGError):
        decode(data)
