"""Element types: one table for Python and C, decoders against the gguf package, rounding to half precision."""

from __future__ import annotations

import numpy as np
import pytest

from ggmlgraph.core import encoding
from ggmlgraph.core.boundary import TYPES, lib
from ggmlgraph.errors import UsageError
from ggmlgraph.table.dialect import TYPES as ELEMENTS

DECODED = [name for name in TYPES if encoding.element(name).decodes]
ENCODED_BLOCKS = [name for name in TYPES if encoding.element(name).encodes and name not in encoding.ENCODED]
BLOCKS = [name for name in DECODED if encoding.element(name).block > 1]


def blocks(name: str, n: int, seed: int = 0) -> np.ndarray:
    """Random bytes of n blocks: every quant, every scale, NaN and infinity among the scales too."""
    return np.random.default_rng(seed).integers(0, 256, (n, encoding.element(name).nbytes), np.uint8)


def test_types_that_c_names_have_the_numbers_of_the_table() -> None:
    named = {n.removeprefix("GG_TYPE_").lower(): getattr(lib, n) for n in dir(lib) if n.startswith("GG_TYPE_")}
    assert {name: TYPES[name] for name in named} == named


def test_types_have_the_numbers_and_sizes_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf", reason="for want of gguf")
    sizes = {kind.name: (kind.value, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    shared = sizes.keys() & ELEMENTS.keys() - {"Q8_1"}  # of which the package gives an older size
    ours = {name: (TYPES[name.lower()], ELEMENTS[name].block, ELEMENTS[name].nbytes) for name in shared}
    assert ours == {name: sizes[name] for name in shared}


@pytest.mark.parametrize("name", DECODED)
def test_random_blocks_decode_to_what_the_gguf_package_says(name: str) -> None:
    quants = pytest.importorskip("gguf.quants", reason="for want of gguf")
    stored = blocks(name, 3000) if name in BLOCKS else np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(all="ignore"):
        expected = quants.dequantize(stored.view(np.uint8), quants.GGMLQuantizationType[name.upper()])
    np.testing.assert_array_equal(encoding.decode(name, stored), expected.reshape(-1).astype(np.float32))


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00, 0x0001, 0x83FF, 0x7BFF])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_scale_that_is_infinite_nan_or_tiny_means_what_float_arithmetic_makes_of_it(name: str, bits: int) -> None:
    quants = pytest.importorskip("gguf.quants", reason="for want of gguf")
    stored = blocks(name, 20)
    at = {"q2_k": 80, "q3_k": 108, "q6_k": 208}.get(name, 0)
    stored[:, at : at + 2] = np.frombuffer(np.uint16(bits).tobytes(), np.uint8)
    with np.errstate(all="ignore"):
        expected = quants.dequantize(stored, quants.GGMLQuantizationType[name.upper()])
    np.testing.assert_array_equal(encoding.decode(name, stored), expected.reshape(-1))


def floats_around_every_half() -> np.ndarray:
    """Every half-precision number, the midpoints between neighbours, and the floats on both sides of these."""
    exact = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (exact[:-1] + exact[1:]) / 2
    near = [np.nextafter(x, np.float32(side)) for x in (exact, middle) for side in (-np.inf, np.inf)]
    positive = np.concatenate([exact, middle, *near, np.float32([65519, 65520, 65521, 1e9, np.inf])])
    return np.concatenate([positive, -positive]).astype(np.float32)


def test_encoding_as_f16_rounds_to_nearest_even() -> None:
    values = floats_around_every_half()
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(encoding.encode("f16", values).view(np.float16), expected)


def test_encoding_as_bf16_rounds_to_nearest_even() -> None:
    high = np.arange(0, 0x7F80, 7, dtype=np.uint32)
    for low, up in ((0, 0), (1, 0), (0x7FFF, 0), (0x8000, high & 1), (0x8001, 1), (0xFFFF, 1)):
        values = (high << 16 | low).astype(np.uint32).view(np.float32)
        np.testing.assert_array_equal(encoding.encode("bf16", values), high + up)


@pytest.mark.parametrize("name", ENCODED_BLOCKS)
def test_blocks_are_those_of_the_gguf_package(name: str) -> None:
    quants = pytest.importorskip("gguf.quants", reason="for want of gguf")
    values = np.random.default_rng(2).normal(size=(300, 32)).astype(np.float32)
    values[:3] = [[0], [2], [-3e38]]
    with np.errstate(all="ignore"):
        expected = quants.quantize(values, quants.GGMLQuantizationType[name.upper()])
    np.testing.assert_array_equal(encoding.encode(name, values).view(np.uint8), expected.reshape(-1))


@pytest.mark.parametrize("name", ENCODED_BLOCKS)
def test_a_block_of_what_is_not_finite_is_still_a_block(name: str) -> None:
    values = np.random.default_rng(3).normal(size=96).astype(np.float32)
    values[[0, 40, 70]] = [np.nan, np.inf, -np.inf]
    assert encoding.decode(name, encoding.encode(name, values)).size == 96


@pytest.mark.parametrize("name", encoding.ENCODED)
def test_nan_stays_nan(name: str) -> None:
    bits = np.uint32([0x7F800001, 0x7FC00000, 0xFFFFFFFF, 0x7FFFFFFF])
    stored = encoding.encode(name, np.resize(bits.view(np.float32), 37))
    assert np.isnan(encoding.decode(name, stored)).all()


@pytest.mark.parametrize("name", encoding.ENCODED)
def test_what_was_encoded_decodes_to_the_same_and_encodes_again_to_the_same(name: str) -> None:
    values = np.random.default_rng(1).normal(size=1001).astype(np.float32)
    once = encoding.encode(name, values)
    np.testing.assert_array_equal(encoding.encode(name, encoding.decode(name, once)), once)
    np.testing.assert_allclose(encoding.decode(name, once), values, rtol=2.0**-8)


def test_part_of_a_block_or_a_type_without_decoder_is_refused() -> None:
    with pytest.raises(UsageError, match="35 bytes of q8_0"):
        encoding.decode("q8_0", bytes(35))
    with pytest.raises(UsageError, match="66 bytes of iq2_xxs"):
        encoding.decode("iq2_xxs", bytes(66))
    with pytest.raises(UsageError, match="33 numbers cannot be encoded as q8_0"):
        encoding.encode("q8_0", np.zeros(33, np.float32))
    with pytest.raises(UsageError, match="256 numbers cannot be encoded as q4_k"):
        encoding.encode("q4_k", np.zeros(256, np.float32))
