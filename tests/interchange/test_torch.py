"""PyTorch checkpoints read as data: every form, every dtype, and what nobody's checkpoint should do."""

from __future__ import annotations

import resource
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints as ck
import numpy as np
import pytest
from places import REAL

from ggmlgraph.errors import FormatError, GGError, UsageError
from ggmlgraph.interchange.formats import torch
from ggmlgraph.interchange.formats.stored import Stored

WEIGHT = np.arange(12, dtype="<f4").reshape(3, 4)
ARRAYS = {"a": WEIGHT, "b": np.array([1.5, -2.0], "<f2"), "c": np.array([[3.0]], "<f8"), "d": np.array([0x3FC0], "<u2")}
RAN = "a line of the checkpoint was run"


def values(stored: Stored) -> Any:
    return np.concatenate([*stored.chunks(), np.empty(0, np.float32)]).reshape(stored.shape)


@pytest.mark.parametrize("write", [ck.write_torch, ck.write_legacy])
def test_tensors_of_every_float_type_are_read_as_float32(
    write: Callable[[Path, ck.Arrays], Path], tmp_path: Path
) -> None:
    tensors = torch.read(write(tmp_path / "m.pt", ARRAYS))
    assert {name: t.dtype for name, t in tensors.items()} == {"a": "f32", "b": "f16", "c": "f64", "d": "bf16"}
    np.testing.assert_array_equal(values(tensors["a"]), WEIGHT)
    np.testing.assert_array_equal(values(tensors["b"]), [1.5, -2.0])
    np.testing.assert_array_equal(values(tensors["c"]), [[3.0]])
    np.testing.assert_array_equal(values(tensors["d"]), [1.5])


def one_tensor(path: Path, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, offset: int = 0) -> Path:
    body = ck.dictionary({"a": ck.tensor(ck.storage("0", "FloatStorage", 12), shape, strides, offset)})
    return ck.write_torch(path, {"a": WEIGHT}, ck.pickled(body))


def test_a_transposed_tensor_is_read_in_its_own_order(tmp_path: Path) -> None:
    tensors = torch.read(one_tensor(tmp_path / "m.pt", (4, 3), (1, 4)))
    np.testing.assert_array_equal(values(tensors["a"]), WEIGHT.T)


def test_a_part_of_a_storage_is_read_from_its_offset(tmp_path: Path) -> None:
    tensors = torch.read(one_tensor(tmp_path / "m.pt", (2, 2), (4, 1), 5))
    np.testing.assert_array_equal(values(tensors["a"]), WEIGHT[1:, 1:3])


def test_rows_are_picked_in_the_order_asked_for(tmp_path: Path) -> None:
    tensors = torch.read(one_tensor(tmp_path / "m.pt", (3, 4)))
    picked = np.concatenate(list(tensors["a"].chunks(np.array([2, 0])))).reshape(2, 4)
    np.testing.assert_array_equal(picked, WEIGHT[[2, 0]])


def test_the_weights_of_a_training_script_are_found_under_model(tmp_path: Path) -> None:
    state = ck.state_dict({"a": WEIGHT})
    body = ck.dictionary({"iter_num": ck.number(3), "best": b"G" + struct.pack(">d", 0.5), "model": state})
    assert list(torch.read(ck.write_torch(tmp_path / "m.pt", {"a": WEIGHT}, ck.pickled(body)))) == ["a"]


def test_a_parameter_is_its_tensor(tmp_path: Path) -> None:
    inner = ck.tensor(ck.storage("0", "FloatStorage", 12), (12,))
    parameter = ck.called("torch._utils._rebuild_parameter") + b"(" + inner + b"\x88" + b"N" + b"tR"
    path = ck.write_torch(tmp_path / "m.pt", {"a": WEIGHT}, ck.pickled(ck.dictionary({"a": parameter})))
    np.testing.assert_array_equal(values(torch.read(path)["a"]), WEIGHT.reshape(-1))


def test_a_weight_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    tensors = torch.read(ck.write_torch(tmp_path / "m.pt", {"a": np.array([1.0, np.nan], "<f4")}))
    with pytest.raises(FormatError, match="not finite"):
        values(tensors["a"])


@pytest.mark.parametrize(
    ("file", "n"), [("consolidated.00.pth", 48), ("hf/pytorch_model.bf16.bin", 48), ("legacy_nonzip_excerpt.bin", 6)]
)
def test_files_that_pytorch_wrote_are_read(file: str, n: int) -> None:
    path = REAL / "stories260K" / file
    if not path.exists():
        pytest.skip(f"for want of {path}")
    tensors = torch.read(path)
    assert len(tensors) == n
    assert all(np.isfinite(values(t)).all() for t in tensors.values())


# ---------------------------------------------------------------- hostile files

STORAGE = ck.storage("0", "FloatStorage", 12)
GOOD = ck.tensor(STORAGE, (3, 4))
CALL = f"print({RAN!r})"
PICKLES = {
    "a call of os.system": ck.called("os.system") + ck.text("touch ran") + b"\x85R",
    "a call of eval": ck.called("builtins.eval") + ck.text(CALL) + b"\x85R",
    "a call of eval by stack": ck.text("builtins") + ck.text("eval") + b"\x93" + ck.text(CALL) + b"\x85R",
    "a call of getattr": ck.called("builtins.getattr") + b"NN\x86R",
    "a class of numpy": ck.called("numpy.core.multiarray._reconstruct"),
    "an instance by INST": b"(" + ck.text("touch ran") + b"ios\nsystem\n",
    "an object by NEWOBJ": ck.called("collections.OrderedDict") + b")\x81",
    "an extension": b"\x82\x01",
    "a dtype called": ck.called("torch.float32") + b")R",
    "a storage class called": ck.called("torch.FloatStorage") + b")R",
    "a function that is text": ck.text("print") + b")R",
    "arguments that are no tuple": ck.called("collections.OrderedDict") + b"]R",
    "an OrderedDict with arguments": ck.called("collections.OrderedDict") + b"]\x85R",
    "a tensor of nothing": ck.called("torch._utils._rebuild_tensor_v2") + b"(NK\x00))\x89NtR",
    "a tensor without strides": ck.tensor(STORAGE, (3, 4), ()),
    "a tensor with a negative size": ck.tensor(STORAGE, (-3, 4), (4, 1)),
    "a tensor with a boolean size": ck.called("torch._utils._rebuild_tensor_v2") + b"(" + STORAGE
    + b"K\x00\x88\x85K\x01\x85\x89NtR",
    "a tensor with too many axes": ck.tensor(STORAGE, (1,) * 9),
    "a tensor larger than its storage": ck.tensor(STORAGE, (3, 5)),
    "a tensor behind its storage": ck.tensor(STORAGE, (3, 4), offset=1),
    "a tensor whose size overflows": ck.tensor(STORAGE, (1 << 40, 1 << 40), (0, 0)),
    "a tensor of one element repeated": ck.tensor(STORAGE, (1 << 30,), (0,)),
    "a tensor that overlaps itself": ck.tensor(STORAGE, (3, 4), (1, 1)),
    "a storage the file does not have": ck.tensor(ck.storage("7", "FloatStorage", 12), (3, 4)),
    "a storage of another size": ck.tensor(ck.storage("0", "FloatStorage", 11), (2, 2)),
    "a storage of another type": ck.tensor(ck.storage("0", "DoubleStorage", 12), (3, 4)),
    "a storage of an unknown class": ck.tensor(ck.storage("0", "float32", 12), (3, 4)),
    "a reference that is no storage": ck.text("x") + b"Q",
    "attributes of a list": b"]}b",
    "a memo entry that is not set": b"h\x05",
    "a memo entry beyond all": b"Nr\xff\xff\xff\xff",
    "a long string": b"X\xff\xff\xff\x7f",
    "text that is not UTF-8": b"X\x01\x00\x00\x00\xff",
    "an empty stack": b"R",
    "a group without begin": b"t",
    "an integer of many bytes": b"\x8a\xff" + bytes(255),
}  # fmt: skip
WHOLE_PICKLES = {
    "no end": b"\x80\x02}",
    "nothing": b"",
    "an unknown protocol": b"\x80\x09}.",
    "the first protocol": b"(dp0\n.",
    "two results": b"\x80\x02}}.",
    "no dictionary": b"\x80\x02].",
    "a dictionary without tensors": b"\x80\x02}.",
    "items of a list": b"\x80\x02](NNu.",
    "a key twice": ck.pickled(b"}(" + (ck.text("a") + GOOD) * 2 + b"u"),
    "a key that is a list": ck.pickled(b"}(]Nu"),
    "a key without value": ck.pickled(b"}(" + ck.text("a") + b"u"),
    "bytes behind the end": ck.pickled(ck.dictionary({"a": GOOD})) + b"\x80\x02.",
}
ENTRIES = list(ck.torch_entries({"a": WEIGHT}).items())
ARCHIVES = {
    "a wrong checksum": ck.zip_bytes(ENTRIES, crc=1),
    "an encrypted entry": ck.zip_bytes(ENTRIES, flags=1),
    "two entries of one name": ck.zip_bytes([*ENTRIES, ENTRIES[0]]),
    "a name outside": ck.zip_bytes([*ENTRIES, ("m/../../x", b"")]),
    "an absolute name": ck.zip_bytes([*ENTRIES, ("/etc/passwd", b"")]),
    "a name of Windows": ck.zip_bytes([*ENTRIES, ("m/c:\\x", b"")]),
    "two folders": ck.zip_bytes([*ENTRIES, ("n/data.pkl", b"")]),
    "no pickle": ck.zip_bytes(ENTRIES[1:]),
    "headers of other names": ck.zip_bytes(ENTRIES, local_name="m/data.pk1"),
    "headers of other sizes": ck.zip_bytes(ENTRIES, local_size=1),
    "bytes before the archive": b"PK\3\4" + ck.zip_bytes(ENTRIES),
    "a first entry at an offset": ck.zip_bytes(ENTRIES, before=b"PK\3\4hidden"),
    "bytes between entries": ck.zip_bytes(ENTRIES, between=b"hidden"),
    "a comment": ck.zip_bytes(ENTRIES, comment=b"hidden"),
    "fewer entries than counted": ck.zip_bytes(ENTRIES, n=9),
    "more entries than counted": ck.zip_bytes(ENTRIES, n=1),
    "big-endian numbers": ck.zip_bytes([(n, b"big" if n == "m/byteorder" else d) for n, d in ENTRIES]),
    "an archive cut off": ck.zip_bytes(ENTRIES)[:-40],
    "only a header": b"PK\3\4",
}
LEGACY = ck.legacy_parts({"a": WEIGHT})
OLD = {
    "an old file cut off": b"".join(LEGACY)[:-1],
    "an old file with more": b"".join(LEGACY) + b"x",
    "an old file of another protocol": b"".join([LEGACY[0], ck.pickled(ck.number(1000)), *LEGACY[2:]]),
    "an old file of a big-endian machine": b"".join(LEGACY).replace(b"\x88", b"\x89", 1),
    "an old file without keys": b"".join([*LEGACY[:4], ck.pickled(b"]"), *LEGACY[5:]]),
    "an old file that calls": b"".join([*LEGACY[:3], ck.pickled(PICKLES["a call of eval"])]),
    "an empty file": b"",
    "a file of something else": b"hello, world",
}
HOSTILE = (
    {name: ck.zip_bytes(list(ck.torch_entries({"a": WEIGHT}, ck.pickled(ck.dictionary({"a": p}))).items()))
     for name, p in PICKLES.items()}
    | {name: ck.zip_bytes(list(ck.torch_entries({"a": WEIGHT}, p).items())) for name, p in WHOLE_PICKLES.items()}
    | ARCHIVES
    | OLD
)  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_and_nothing_is_run(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "m.pt"
    path.write_bytes(HOSTILE[what])
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(GGError) as caught:
        torch.read(path)
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10  # KiB
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]
    assert RAN not in capsys.readouterr().out


def test_the_archive_those_files_are_made_from_is_good(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(ck.zip_bytes(ENTRIES))
    np.testing.assert_array_equal(values(torch.read(path)["a"]), WEIGHT)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = ck.write_zip(tmp_path / "m.pt", ck.torch_entries({"a": WEIGHT}), zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="compressed"):
        torch.read(path)


def test_a_pickle_that_goes_on_for_ever_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "MAX_STEPS", 1000)
    path = ck.write_torch(tmp_path / "m.pt", {"a": WEIGHT}, b"\x80\x02" + b"N" * 2000)
    with pytest.raises(FormatError, match="1000 instructions"):
        torch.read(path)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="regular"):
        torch.read(tmp_path)


# ---------------------------------------------------------------- values that are shared, deep or large


def loaded(tmp_path: Path, body: bytes) -> Any:
    return torch.load(ck.write_torch(tmp_path / "m.pt", {"a": WEIGHT}, ck.pickled(body))).root


def test_what_a_checkpoint_says_twice_may_be_one_value(tmp_path: Path) -> None:
    groups = b"](" + b"G?\xb9\x99\x99\x99\x99\x99\x9aK\x01\x86q\x05" + b"h\x05" * 3 + b"e"
    assert loaded(tmp_path, groups) == [(0.1, 1)] * 4


def test_a_few_parameters_may_be_numbered_by_their_address_as_old_pytorch_did(tmp_path: Path) -> None:
    addresses = [140_000_000_000_000 + 64 * i for i in range(300)]
    assert list(loaded(tmp_path, b"}(" + b"".join(ck.number(i) + b"N" for i in addresses) + b"u")) == addresses


def test_numbers_of_entries_are_keys_however_many(tmp_path: Path) -> None:
    assert len(loaded(tmp_path, b"}(" + b"".join(ck.number(i) + b"N" for i in range(20_000)) + b"u")) == 20_000


@pytest.mark.parametrize("depth", [torch.MAX_DEPTH, torch.MAX_DEPTH + 1])
def test_values_are_in_one_another_up_to_a_depth(depth: int, tmp_path: Path) -> None:
    if depth > torch.MAX_DEPTH:
        with pytest.raises(FormatError, match="more than 32 deep"):
            loaded(tmp_path, b")" + b"\x85" * (depth - 1))
        return
    value = loaded(tmp_path, b")" + b"\x85" * (depth - 1))
    for _ in range(depth - 1):
        (value,) = value
    assert value == ()


def test_depth_counts_from_every_place_where_a_value_is(tmp_path: Path) -> None:
    inner = b")" + b"\x85" * 20 + b"q\x05"
    with pytest.raises(FormatError, match="32 deep"):
        loaded(tmp_path, inner + b"h\x05" + b"\x85" * 20 + b"\x86")


def test_a_message_quotes_only_the_beginning_of_a_long_name(tmp_path: Path) -> None:
    key = ck.text("a" * 100_000) + b"N"
    with pytest.raises(FormatError) as raised:
        loaded(tmp_path, b"}(" + key * 2 + b"u")
    assert len(str(raised.value)) < 5000
