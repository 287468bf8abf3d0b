"""Writers of other programs' checkpoints, byte by byte, so that a test can also write them wrong."""

from __future__ import annotations

import json
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

STORAGES = {"<f4": "FloatStorage", "<f2": "HalfStorage", "<u2": "BFloat16Storage", "<f8": "DoubleStorage"}


# ---------------------------------------------------------------- pickles


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def called(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def storage(key: str, kind: str, n: int, *, legacy: bool = False) -> bytes:
    view = b"N" if legacy else b""
    return b"(" + text("storage") + called(f"torch.{kind}") + text(key) + text("cpu") + number(n) + view + b"tQ"


def tensor(of: bytes, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, offset: int = 0) -> bytes:
    """A call of _rebuild_tensor_v2."""
    if strides is None:
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    hooks = called("collections.OrderedDict") + b")R"
    arguments = of + number(offset) + numbers(shape) + numbers(strides) + b"\x89" + hooks
    return called("torch._utils._rebuild_tensor_v2") + b"(" + arguments + b"tR"


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def dictionary(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def plain(value: Any) -> bytes:
    """A number, a text, a truth, or a dictionary, list or tuple of these."""
    if isinstance(value, dict):
        return b"}(" + b"".join(plain(key) + plain(item) for key, item in value.items()) + b"u"
    if isinstance(value, list | tuple):
        items = b"".join(map(plain, value))
        return b"](" + items + b"e" if isinstance(value, list) else b"(" + items + b"t"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    return number(value) if isinstance(value, int) else text(value)


ADAM = {"lr": 6e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False}


def adam(arrays: Arrays, place: int, n_groups: int = 2, **changes: Any) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """The pickle of an AdamW's state_dict, and the storages it wants from number `place` on.

    arrays: the parameters in the order of their model; moments are 2 and 3 times them. Two groups: matrices first.
    changes: "steps", of each; "keys", of the moments; what the groups say.
    """
    order = sorted(arrays, key=lambda name: arrays[name].ndim < 2) if n_groups > 1 else list(arrays)
    n_matrices = sum(array.ndim > 1 for array in arrays.values()) if n_groups > 1 else len(order)
    steps, keys = changes.pop("steps", [7.0] * len(order)), changes.pop("keys", ("exp_avg", "exp_avg_sq"))
    stored, states = {}, b""
    for i, name in enumerate(order):
        state = {"step": plain(steps[i])}
        for k, key in enumerate(keys):
            stored[f"{key}.{name}"] = (k + 2) * arrays[name]
            state[key] = tensor(
                storage(str(place + len(stored) - 1), "FloatStorage", arrays[name].size), arrays[name].shape
            )
        states += plain(i) + dictionary(state)
    numbers = [list(range(n_matrices)), *([[]] * (n_groups - 2)), list(range(n_matrices, len(order)))][:n_groups]
    groups = plain([ADAM | {"params": group} | changes for group in numbers])
    return dictionary({"state": b"}(" + states + b"u", "param_groups": groups}), stored


def state_dict(arrays: Arrays, *, legacy: bool = False) -> bytes:
    return dictionary(
        {
            name: tensor(storage(str(i), STORAGES[a.dtype.str], a.size, legacy=legacy), a.shape)
            for i, (name, a) in enumerate(arrays.items())
        }
    )


# ---------------------------------------------------------------- files


def write_zip(path: Path, entries: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def torch_entries(arrays: Arrays, pickle: bytes | None = None) -> dict[str, bytes]:
    data = {f"m/data/{i}": a.tobytes() for i, a in enumerate(arrays.values())}
    return {"m/data.pkl": pickled(state_dict(arrays)) if pickle is None else pickle, "m/byteorder": b"little", **data}


def write_torch(path: Path, arrays: Arrays, pickle: bytes | None = None) -> Path:
    return write_zip(path, torch_entries(arrays, pickle))


def legacy_parts(arrays: Arrays) -> list[bytes]:
    """The five pickles, then the storages."""
    machine = dictionary({"little_endian": b"\x88", "protocol_version": number(1001)})
    keys = b"](" + b"".join(text(str(i)) for i in range(len(arrays))) + b"e"
    magic = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
    storages = [struct.pack("<Q", a.size) + a.tobytes() for a in arrays.values()]
    pickles = [pickled(number(1001)), pickled(machine), pickled(state_dict(arrays, legacy=True)), pickled(keys)]
    return [magic, *pickles, *storages]


def write_legacy(path: Path, arrays: Arrays) -> Path:
    path.write_bytes(b"".join(legacy_parts(arrays)))
    return path


def safetensors_header(arrays: Arrays) -> dict[str, Any]:
    names = {"<f4": "F32", "<f2": "F16", "<u2": "BF16", "<f8": "F64"}
    header, at = {}, 0
    for name, a in arrays.items():
        header[name] = {"dtype": names[a.dtype.str], "shape": list(a.shape), "data_offsets": [at, at + a.nbytes]}
        at += a.nbytes
    return header


def write_safetensors(path: Path, arrays: Arrays, header: bytes | None = None) -> Path:
    raw = json.dumps(safetensors_header(arrays)).encode() if header is None else header
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(a.tobytes() for a in arrays.values()))
    return path


def gguf_string(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def gguf_value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<I", 8) + gguf_string(value.encode())


def gguf_info(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return gguf_string(name.encode()) + sizes + struct.pack("<IQ", kind, offset)


def gguf_bytes(pairs: Mapping[str, Any], arrays: Arrays) -> bytes:
    kinds = {"<f4": 0, "<f2": 1, "<u2": 30, "<f8": 28}
    infos, data = b"", b""
    for name, a in arrays.items():
        infos += gguf_info(name, a.shape, kinds[a.dtype.str], len(data))
        data += a.tobytes() + b"\0" * (-a.nbytes % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(arrays), len(pairs))
    head += b"".join(gguf_string(key.encode()) + gguf_value(value) for key, value in pairs.items()) + infos
    return head + b"\0" * (-len(head) % 32) + data


def zip_bytes(entries: list[tuple[str, bytes]], **wrong: Any) -> bytes:
    """A zip archive of stored entries; `wrong` replaces what one of its fields says."""
    body, directory = wrong.get("before", b""), b""
    for name, data in entries:
        raw, crc = name.encode(), wrong.get("crc", zlib.crc32(data))
        local = wrong.get("local_name", name).encode()
        sizes = (crc, len(data), len(data))
        flags = wrong.get("flags", 0)
        rest = (*sizes, len(raw), 0, 0, 0, 0, 0, len(body))
        directory += struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, flags, 0, 0, 0, *rest) + raw
        local_sizes = (crc, len(data), wrong.get("local_size", len(data)))
        body += struct.pack("<4s5H3I2H", b"PK\3\4", 20, flags, 0, 0, 0, *local_sizes, len(local), 0) + local + data
        body += wrong.get("between", b"")
    n = wrong.get("n", len(entries))
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, n, n, len(directory), len(body), len(wrong.get("comment", b"")))
    return body + directory + end + wrong.get("comment", b"")
