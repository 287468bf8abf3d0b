"""The metadata leaf: what is written is read, and nothing else than metadata is accepted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggmlgraph.errors import FormatError, GGError, UnsupportedError
from ggmlgraph.graphfile.metadata import MAX_NBYTES, MAX_TEXT, Metadata, ParamGroup, SizeExpressions, decode

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
    dropout={"node_7": 0.1},
    where={"node_9": "models/gpt_neox.py:41"},
    corpus="builtin:sine",
    initializers={"wte": "normal(0.02)"},
    groups=(ParamGroup("*.bias", decay=0.0), ParamGroup("head.*", lr=0.1)),
)

CONTROLS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # beside Cc, Cs, Zl and Zp
NAMES = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters=CONTROLS), min_size=1, max_size=20
)
SIZES = st.dictionaries(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True), st.integers(1, 1 << 40), max_size=16
)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | NAMES
)


def test_what_is_encoded_is_decoded() -> None:
    assert decode(EXAMPLE.encode()) == EXAMPLE


@given(NAMES, st.dictionaries(NAMES, SCALARS), SIZES)
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
        b'{"model": "m", "config": {"x": 9223372036854775809}}',
        b'{"model": "m", "inputs": {"x": "tokens", "y": "tokens"}}',
        b'{"model": "m", "sizes": {"a b": 1}}', b'{"model": "m", "sizes": {"": 1}}',
        b'{"model": "m", "sizes": {"\xc3\xa9": 1}}',
        b'{"model": "m", "sizes": {' + b",".join(b'"s%d": 1' % i for i in range(17)) + b"}}",
        b'{"model": "m", "sizes": {"ctx": 9}, "limits": {"ctx": 8}}',
        b'{"model": "m", "exact": {"x": "gelu"}}', b'{"model": "m", "exact": {"x": "nothing"}}',
        b'{"model": "m", "dropout": {"x": 0}}', b'{"model": "m", "dropout": {"x": 1.0}}',
        b'{"model": "m", "dropout": {"x": -0.5}}', b'{"model": "m", "dropout": {"x": "0.5"}}',
        b'{"model": "m", "groups": {}}', b'{"model": "m", "groups": [{}]}',
        b'{"model": "m", "groups": [{"pattern": 1}]}',
        b'{"model": "m", "groups": [{"pattern": "*", "lr": -1}]}',
        b'{"model": "m", "groups": [{"pattern": "*", "decay": 1e7}]}',
        b'{"model": "m", "groups": [' + b",".join([b'{"pattern": "*"}'] * 257) + b"]}",
        b'{"model": "m", "exact": {"x": null}}', b'{"model": "m", "where": []}', b'{"model": "m", "x": ' + b"[" * 10**6,
    ],
)  # fmt: skip
def test_malformed_metadata_are_a_format_error(text: bytes) -> None:
    with pytest.raises(FormatError) as raised:
        decode(text)
    assert raised.value.code == "BadMetadata"
    assert str(raised.value).endswith(" [BadMetadata]")


@pytest.mark.parametrize(
    "text",
    [
        '"model": "%s"',
        '"model": "m", "fixed": "%s"',
        '"model": "m", "corpus": "%s"',
        '"model": "m", "config": {"%s": 1}',
        '"model": "m", "config": {"a": "%s"}',
        '"model": "m", "where": {"x": "%s"}',
        '"model": "m", "where": {"%s": ""}',
        '"model": "m", "inputs": {"%s": "tokens"}',
        '"model": "m", "exact": {"%s": "gelu_erf"}',
        '"model": "m", "dropout": {"%s": 0.5}',
        '"model": "m", "flags": {"%s": 1}',
        '"model": "m", "limits": {"%s": 1}',
        '"model": "m", "sizes": {"%s": 1}',
        '"model": "m", "initializers": {"x": "%s"}',
        '"model": "m", "groups": [{"pattern": "%s"}]',
        '"model": "m", "exprs": {"%s": {}}',
        '"model": "m", "exprs": {"x": {"ne": ["%s", null, null, null]}}',
        '"model": "m", "exprs": {"x": {"offset": "%s"}}',
    ],
)
def test_no_text_has_a_character_that_steers_a_terminal(text: str) -> None:
    for character in ("\\u001b[31m", "\\u0007", "\\n", "\u009b", "\u2028", "\u202e"):
        with pytest.raises(FormatError) as raised:
            decode(("{" + text % f"a{character}b" + "}").encode())
        assert raised.value.code == "BadMetadata"
        assert str(raised.value).isprintable()


def test_no_text_is_longer_than_a_path() -> None:
    assert decode(Metadata(model="m" * MAX_TEXT).encode()).model == "m" * MAX_TEXT
    with pytest.raises(FormatError, match="at most 4096"):
        decode(Metadata(model="m" * (MAX_TEXT + 1)).encode())


def test_metadata_beyond_the_size_cap_are_refused() -> None:
    data = Metadata(model="m").encode()
    assert decode(data.ljust(MAX_NBYTES)).model == "m"
    with pytest.raises(FormatError, match="at most"):
        decode(data.ljust(MAX_NBYTES + 1))


# ---------------------------------------------------------------- an independent reader

TYPES: dict[str, Callable[[Any], bool]] = {
    "version": lambda v: type(v) is int and v >= 1,
    "model": lambda v: is_text(v),
    "config": lambda v: is_map(v, lambda x: x is None or type(x) in (bool, float) or is_text(x) or is_whole(x)),
    "sizes": lambda v: (
        is_map(v, is_size) and len(v) <= 16 and all(re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", x) for x in v)
    ),
    "limits": lambda v: is_map(v, is_size),
    "fixed": lambda v: v is None or is_text(v),
    "corpus": lambda v: v is None or is_text(v),
    "inputs": lambda v: is_map(v, lambda x: x in FEEDS) and len(set(v.values())) == len(v),
    "exprs": lambda v: is_map(v, is_size_expressions),
    "exact": lambda v: is_map(v, lambda x: x == "gelu_erf"),
    "dropout": lambda v: is_map(v, lambda x: type(x) is float and 2**-24 <= x <= 1 - 2**-24),
    "where": lambda v: is_map(v, is_text),
    "initializers": lambda v: is_map(v, is_text),
    "groups": lambda v: type(v) is list and len(v) <= 256 and all(map(is_group, v)),
    "flags": lambda v: is_map(v, lambda x: type(x) is int and 1 <= x <= 15),
}


FEEDS = ("tokens", "targets", "loss_weights", "positions", "positions_f32")


def is_group(value: Any) -> bool:
    factors = [value.get("lr", 1), value.get("decay", 1)] if type(value) is dict else []
    return (
        bool(factors)
        and is_text(value.get("pattern"))
        and all(type(x) in (int, float) and 0 <= x <= 1e6 for x in factors)
    )


def is_text(value: Any) -> bool:
    steers = ("Cc", "Zl", "Zp", "Cs")
    return type(value) is str and not any(unicodedata.category(c) in steers or c in CONTROLS for c in value)


def is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) <= 1 << 63


def is_map(value: Any, holds: Callable[[Any], bool]) -> bool:
    return type(value) is dict and all(is_text(name) and holds(x) for name, x in value.items())


def is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 1 << 40


def is_size_expressions(value: Any) -> bool:
    if type(value) is not dict:
        return False
    ne = value.get("ne", [None] * 4)
    return type(ne) is list and len(ne) == 4 and all(x is None or is_text(x) for x in (*ne, value.get("offset")))


class TwiceError(Exception):
    """A name that an object has twice: of the values, the readers check all or one."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise TwiceError
    return dict(pairs)


def read_with_json(data: bytes) -> dict[str, Any] | None:
    """The known fields of metadata by Python's own JSON and the table above; None if they are none."""

    def refuse(text: str) -> None:
        raise ValueError(text)

    def finite(text: str) -> float:
        if not math.isfinite(float(text)):
            raise ValueError(text)
        return float(text)

    try:
        fields = json.loads(data.decode(), parse_constant=refuse, parse_float=finite, object_pairs_hook=once)
        json.dumps(fields, ensure_ascii=False).encode()  # halves of characters are none
    except (ValueError, RecursionError):
        return None
    if type(fields) is not dict or type(fields.get("model")) is not str:
        return None
    known = {name: value for name, value in fields.items() if name in TYPES}
    if not all(TYPES[name](value) for name, value in known.items()):
        return None
    sizes = known.get("sizes", {})
    return known if all(sizes.get(name, 0) <= most for name, most in known.get("limits", {}).items()) else None


def digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


TOKENS = (b"{", b"}", b"[", b"]", b",", b":", b'"', b"null", b"true", b"0", b"-1", b"1e400", b"1.0", b"99999999999999",
          b'"model"', b'"ne"', b'"flags"', b'{"a":', b"\\u0000", b"\\ud800", b"\xff", b"\xc3\xa9", b" ")  # fmt: skip


def mutations(n: int, seed: int) -> Iterator[bytes]:
    """Changed texts of the leaf: bytes, JSON tokens put in, parts taken out or doubled."""
    rng = random.Random(seed)
    texts = [EXAMPLE.encode(), Metadata(model="m", flags={"x": 4}, limits={"ctx": 9}).encode()]
    for _ in range(n):
        data = rng.choice(texts)
        for _ in range(rng.choice((1, 1, 2, 3))):
            at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
            end = min(end, at + rng.choice((1, 4, 40)))
            put = rng.choice((b"", bytes([rng.randrange(256)]), rng.choice(TOKENS), data[at:end] * 2))
            data = data[:at] + put + data[end if rng.random() < 0.7 else at :]
        yield data


def test_an_independent_reader_takes_the_same_changed_texts_and_reads_the_same() -> None:
    accepted = 0
    for data in mutations(20_000, seed=1):
        try:
            expected = read_with_json(data)
        except TwiceError:
            continue
        if expected is not None and expected.get("version", 1) > 1:
            expected = None
        try:
            ours = decode(data)
        except GGError:
            assert expected is None, data
            continue
        assert expected is not None, data
        fields = json.loads(msgspec.json.encode(ours))
        defaults = json.loads(msgspec.json.encode(Metadata(model="")))
        exprs = {name: {"ne": [None] * 4, **e} for name, e in fields.pop("exprs").items()}
        wanted = {**defaults, **expected}
        wanted["groups"] = [
            {"pattern": g["pattern"], "lr": float(g.get("lr", 1)), "decay": float(g.get("decay", 1))}
            for g in wanted["groups"]
        ]
        wanted_exprs = {name: {"ne": [None] * 4, **{k: v for k, v in e.items() if k == "ne" or (k == "offset" and v)}}
                        for name, e in wanted.pop("exprs").items()}  # fmt: skip
        assert digest(fields | {"exprs": exprs}) == digest(wanted | {"exprs": wanted_exprs}), data
        accepted += 1
    assert accepted > 1000


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
