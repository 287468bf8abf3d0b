"""PyTorch checkpoints (.pth, .pt, .bin) as data: which tensors are in the file, and where. Used by the sources.

A checkpoint is a pickle, a program that builds objects, plus storages of raw numbers; in a zip archive since
PyTorch 1.6 (zip.py), one behind the other before. Python's unpickler runs whatever the program names, so it is
not used: the few instructions that a dictionary of tensors needs are interpreted here, on plain values. A global is a
word of `_GLOBALS` or an error. What results is a tree no larger than the file pays for, so whoever reads it may walk,
compare and show it; before that is known nobody does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ggmlgraph.errors import FormatError, UnsupportedError
from ggmlgraph.files.regular import open_regular
from ggmlgraph.interchange.formats.stored import (
    MAX_ELEMENTS,
    MAX_RANK,
    Stored,
    check_shape,
    dense_strides,
    itemsize,
    span,
)
from ggmlgraph.interchange.formats.wrappers import unwrapped
from ggmlgraph.interchange.formats.zip import check_entry, read_entries

MAX_PICKLE_NBYTES = 32 << 20
MAX_STEPS = 1 << 22  # instructions of one pickle; a tensor takes about 35
MAX_MEMO = 1 << 20
MAX_LARGE_KEYS = 1 << 12  # integers as keys that are no numbers of entries: chosen ones would all collide in a dict
MAX_DEPTH = 32  # of dictionaries, lists and tuples in one another
MAX_SHARING = 8  # values, shared ones counted wherever they are, for each byte of the pickle
MAX_NAME_NBYTES = 1 << 12
MAX_STRING_NBYTES = 1 << 20

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # 0x1950a86a20f9469cfc6c, pickled
LEGACY_PROTOCOL = 1001

STORAGES = {
    "DoubleStorage": "f64", "FloatStorage": "f32", "HalfStorage": "f16", "BFloat16Storage": "bf16",
    "LongStorage": "i64", "IntStorage": "i32", "ShortStorage": "i16", "CharStorage": "i8",
    "ByteStorage": "u8", "BoolStorage": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class TorchFile:
    """What a checkpoint holds: dictionaries and lists in dictionaries, of tensors and plain values."""

    path: Path
    root: Any
    places: dict[str, tuple[int, int]]  # of each storage: offset in the file, bytes

    def at(self, *keys: str | int) -> dict[Any, Any]:
        """The dictionary there; an empty one if there is none."""
        found = self.root
        for key in keys:
            if isinstance(found, list) and isinstance(key, int):
                found = found[key] if key < len(found) else None
            else:
                found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    def tensors(self, *keys: str | int) -> dict[str, Stored]:
        """The tensors of the dictionary there, by name. Raises FormatError for one the file does not hold."""
        items = self.at(*keys).items()
        found = {name: value for name, value in items if isinstance(name, str) and isinstance(value, _Tensor)}
        return {name: _place(self.path, name, tensor, self.places) for name, tensor in found.items()}

    def model(self) -> dict[str, Stored]:
        """The tensors of `state`, their names without what wrappers of the model put before them."""
        return unwrapped(self.state())[0]

    def state(self) -> dict[str, Stored]:
        """The tensors of the dictionary that the file is, or of the one that training scripts put under a name beside
        their own state. Raises FormatError if there are none.
        """
        places = (("model",), ("state_dict",), ("model_state_dict",), ("module",), ())
        states = (self.tensors(*keys) for keys in places)
        tensors = next((found for found in states if found), None)
        if tensors is None:
            raise FormatError(f"{self.path}: it holds no dictionary of tensors")
        return tensors


def read(path: Path) -> dict[str, Stored]:
    """The tensors in a checkpoint, or in one of several files of one; see `load` and `TorchFile.state`."""
    return load(path).state()


def load(path: Path) -> TorchFile:
    """A checkpoint, interpreted.

    Raises FormatError for a file that is damaged or does more than describe tensors; UnsupportedError.
    """
    file, size = open_regular(path)
    with file:
        start = file.read(len(LEGACY_MAGIC))
        if start.startswith(ZIP_MAGIC):
            root, places = _read_zip(path, file, size)
        elif start == LEGACY_MAGIC:
            root, places = _read_legacy(path, file, size)
        else:
            raise FormatError(f"{path}: not a PyTorch checkpoint", offset=0)
    return TorchFile(path, root, places)


# ---------------------------------------------------------------- what a pickle may build


@dataclass(frozen=True)
class _Storage:
    """A run of numbers elsewhere in the file."""

    key: str
    dtype: str
    n: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """A name from the pickle, of those below; `call` makes plain data of REDUCE's arguments."""

    name: str
    call: Callable[[tuple[Any, ...]], Any] | None = None


class _BadPickle(Exception):
    """Why a pickle is refused; the interpreter adds the offset."""


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise _BadPickle("an OrderedDict with arguments")
    return {}


def _size(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    if len(arguments) != 1:
        raise _BadPickle("a torch.Size without one argument")
    return _sizes(arguments[0], "a torch.Size")


def _rebuild_tensor(arguments: tuple[Any, ...]) -> _Tensor:
    """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])."""
    if not 6 <= len(arguments) <= 7 or not isinstance(arguments[0], _Storage):
        raise _BadPickle("a tensor that is not made of a storage")
    (offset,) = _sizes((arguments[1],), "the offset of a tensor")
    shape, strides = _sizes(arguments[2], "the shape of a tensor"), _sizes(arguments[3], "the strides of a tensor")
    if len(shape) != len(strides):
        raise _BadPickle(f"a tensor with {len(shape)} sizes and {len(strides)} strides")
    return _Tensor(arguments[0], offset, shape, strides)


def _rebuild_parameter(arguments: tuple[Any, ...]) -> _Tensor:
    """torch._utils._rebuild_parameter(tensor, requires_grad, hooks)."""
    if len(arguments) != 3 or not isinstance(arguments[0], _Tensor):
        raise _BadPickle("a parameter that is not made of a tensor")
    return arguments[0]


def _sizes(values: Any, what: str) -> tuple[int, ...]:
    """A tuple of plain integers from 0, one for each axis. Its length comes first: the pickle may ask for it again."""
    if not isinstance(values, tuple) or len(values) > MAX_RANK:
        raise _BadPickle(f"{what} is no tuple of at most {MAX_RANK} numbers")
    if not all(type(n) is int and 0 <= n < MAX_ELEMENTS for n in values):
        raise _BadPickle(f"{what} is not made of numbers from 0 to {MAX_ELEMENTS}")
    return values


def _check_tree(root: Any, most: int) -> None:
    """Raise _BadPickle for a value that contains itself, is too deep, or would without sharing be too many values."""
    found: dict[int, tuple[int, int]] = {}  # by id of a container: values in it, how deep they are

    def measure(value: Any, depth: int) -> tuple[int, int]:
        if not isinstance(value, dict | list | tuple):
            return 1, 0
        if id(value) not in found:
            if depth == MAX_DEPTH:
                raise _BadPickle(f"values more than {MAX_DEPTH} deep, or in themselves")
            inside = [measure(each, depth + 1) for each in (value.values() if isinstance(value, dict) else value)]
            found[id(value)] = 1 + sum(n for n, _ in inside), 1 + max((below for _, below in inside), default=0)
        n, below = found[id(value)]
        if depth + below > MAX_DEPTH:
            raise _BadPickle(f"values more than {MAX_DEPTH} deep")
        return n, below

    if (n := measure(root, 0)[0]) > most:
        raise _BadPickle(f"{n} values, most of them said once and used again; at most {most} are read")


_CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections OrderedDict": _ordered_dict,
    "torch Size": _size,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
}
_WORDS = [f"torch {word}" for word in (
    *STORAGES, "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
)]  # fmt: skip
_GLOBALS = {name: _Global(name, _CALLS.get(name)) for name in (*_CALLS, *_WORDS)}


# ---------------------------------------------------------------- the interpreter


class _Interpreter:
    """Runs one pickle. Values are None, bool, int, float, str, tuple, list, dict, and the three classes above."""

    def __init__(self, path: Path, code: bytes, at: int, origin: int) -> None:
        """code: the pickle begins at `at`; origin: the file's offset of code[0], for messages."""
        self.path, self.code, self.at, self.origin = path, code, at, origin
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, _Storage] = {}
        self.n_large_keys = 0

    def run(self) -> Any:
        """The value that the pickle leaves; `at` is then behind its last instruction."""
        for _ in range(MAX_STEPS):
            start = self.at
            try:
                opcode = self._take(1)
                if opcode == b".":
                    return self._result()
                step = _STEPS.get(opcode)
                if step is None:
                    raise _BadPickle(f"the instruction {opcode!r}, which no dictionary of tensors needs")
                step(self)
            except _BadPickle as reason:
                offset = self.origin + start
                raise FormatError(f"{self.path}: pickle, byte {offset}: {reason}", offset=offset) from None
        raise FormatError(f"{self.path}: a pickle of more than {MAX_STEPS} instructions")

    def _result(self) -> Any:
        if len(self.stack) != 1 or self.marks:
            raise _BadPickle("the end, with unfinished values")
        _check_tree(self.stack[0], MAX_SHARING * len(self.code))
        return self.stack.pop()

    # -- reading the code

    def _take(self, n: int) -> bytes:
        if n > len(self.code) - self.at:
            raise _BadPickle("the end of the file inside an instruction")
        self.at += n
        return self.code[self.at - n : self.at]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self.code.find(b"\n", self.at, self.at + MAX_NAME_NBYTES)
        if end < 0:
            raise _BadPickle("a name without end")
        return _text(self._take(end + 1 - self.at)[:-1])

    # -- the stack

    def _pop(self) -> Any:
        floor = self.marks[-1] if self.marks else 0
        if len(self.stack) <= floor:
            raise _BadPickle("a value taken from an empty stack")
        return self.stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise _BadPickle("a group without begin")
        at = self.marks.pop()
        values = self.stack[at:]
        del self.stack[at:]
        return values

    def _top(self, kind: type) -> Any:
        floor = self.marks[-1] if self.marks else 0
        if len(self.stack) <= floor or type(self.stack[-1]) is not kind:
            raise _BadPickle(f"values put into something that is no {kind.__name__}")
        return self.stack[-1]

    # -- instructions

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def protocol(self) -> None:
        version = self._number("<B")
        if not 2 <= version <= 5:
            raise _BadPickle(f"pickle protocol {version}")

    def frame(self) -> None:
        """A hint for readers of streams."""
        self._take(8)

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def integer(self, form: str) -> None:
        self.push(self._number(form))

    def long(self) -> None:
        n = self._number("<B")
        if n > 16:
            raise _BadPickle(f"an integer of {n} bytes")
        self.push(int.from_bytes(self._take(n), "little", signed=True))

    def string(self, form: str) -> None:
        n = self._number(form)
        if n > MAX_STRING_NBYTES:
            raise _BadPickle(f"a string of {n} bytes")
        self.push(_text(self._take(n)))

    def tuple_of_mark(self) -> None:
        self.push(tuple(self._pop_to_mark()))

    def tuple_of(self, n: int) -> None:
        values = [self._pop() for _ in range(n)]
        self.push(tuple(reversed(values)))

    def append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def appends(self) -> None:
        values = self._pop_to_mark()
        self._top(list).extend(values)

    def set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def set_items(self) -> None:
        self._set(self._pop_to_mark())

    def _set(self, values: list[Any]) -> None:
        target = self._top(dict)
        if len(values) % 2:
            raise _BadPickle("a key without value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int):
                raise _BadPickle("a key that is neither text nor integer")
            if type(key) is int and not 0 <= key < MAX_MEMO:
                self.n_large_keys += 1
            if self.n_large_keys > MAX_LARGE_KEYS:
                raise _BadPickle(f"more than {MAX_LARGE_KEYS} large integers as keys")
            if key in target:
                raise _BadPickle(f"the key {key!r} twice")
            target[key] = value

    def put(self, form: str) -> None:
        self._remember(self._number(form))

    def memoize(self) -> None:
        self._remember(len(self.memo))

    def _remember(self, index: int) -> None:
        if index >= MAX_MEMO:
            raise _BadPickle(f"memo entry {index}")
        if not self.stack:
            raise _BadPickle("a value remembered from an empty stack")
        self.memo[index] = self.stack[-1]

    def get(self, form: str) -> None:
        index = self._number(form)
        if index not in self.memo:
            raise _BadPickle(f"memo entry {index}, which was not set")
        self.push(self.memo[index])

    def global_line(self) -> None:
        module = self._line()
        self._global(module, self._line())

    def global_stack(self) -> None:
        name, module = self._pop(), self._pop()
        self._global(module, name)

    def _global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise _BadPickle("a name that is no text")
        known = _GLOBALS.get(f"{module} {name}")
        if known is None:
            raise _BadPickle(f"it names {module[:80]!r}.{name[:80]!r}, which is not needed to hold tensors")
        self.push(known)

    def reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Global) or function.call is None or not isinstance(arguments, tuple):
            raise _BadPickle("a call of something that is no function")
        self.push(function.call(arguments))

    def build(self) -> None:
        """Attributes of an OrderedDict (a state_dict has the versions of its modules): not needed."""
        if type(self._pop()) is not dict:
            raise _BadPickle("attributes that are no dictionary")
        self._top(dict)

    def persistent_id(self) -> None:
        """("storage", storage class, key, device, number of elements[, view]) -> the storage."""
        pid = self._pop()
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise _BadPickle("a reference that is no storage")
        kind, key = pid[1], pid[2]
        dtype = STORAGES.get(kind.name.removeprefix("torch ")) if isinstance(kind, _Global) else None
        if dtype is None or not isinstance(key, str) or (len(pid) == 6 and pid[5] is not None):
            raise _BadPickle("a storage of an unknown kind")
        (n,) = _sizes((pid[4],), "the size of a storage")
        storage = self.storages.setdefault(key, _Storage(key, dtype, n))
        if storage != _Storage(key, dtype, n):
            raise _BadPickle(f"two descriptions of storage {key!r}")
        self.push(storage)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _BadPickle("text that is not UTF-8") from None


_I = _Interpreter
_STEPS: dict[bytes, Callable[[_Interpreter], None]] = {
    b"\x80": _I.protocol,
    b"\x95": _I.frame,
    b"(": _I.mark,
    b"N": lambda vm: vm.push(None),
    b"\x88": lambda vm: vm.push(True),
    b"\x89": lambda vm: vm.push(False),
    b"J": lambda vm: vm.integer("<i"),
    b"K": lambda vm: vm.integer("<B"),
    b"M": lambda vm: vm.integer("<H"),
    b"\x8a": _I.long,
    b"G": lambda vm: vm.integer(">d"),
    b"X": lambda vm: vm.string("<I"),
    b"\x8c": lambda vm: vm.string("<B"),
    b"}": lambda vm: vm.push({}),
    b"]": lambda vm: vm.push([]),
    b")": lambda vm: vm.push(()),
    b"t": _I.tuple_of_mark,
    b"\x85": lambda vm: vm.tuple_of(1),
    b"\x86": lambda vm: vm.tuple_of(2),
    b"\x87": lambda vm: vm.tuple_of(3),
    b"a": _I.append,
    b"e": _I.appends,
    b"s": _I.set_item,
    b"u": _I.set_items,
    b"q": lambda vm: vm.put("<B"),
    b"r": lambda vm: vm.put("<I"),
    b"\x94": _I.memoize,
    b"h": lambda vm: vm.get("<B"),
    b"j": lambda vm: vm.get("<I"),
    b"c": _I.global_line,
    b"\x93": _I.global_stack,
    b"R": _I.reduce,
    b"b": _I.build,
    b"Q": _I.persistent_id,
}


# ---------------------------------------------------------------- tensors

_Places = dict[str, tuple[int, int]]


def _place(path: Path, name: str, tensor: _Tensor, places: _Places) -> Stored:
    """Where a tensor's values are. Raises FormatError unless they lie within their storage, no two in one place."""
    storage = tensor.storage
    if storage.key not in places:
        raise FormatError(f"{path}: {name!r} is in storage {storage.key!r}, which the file does not have")
    offset, nbytes = places[storage.key]
    if nbytes != storage.n * itemsize(storage.dtype):
        raise FormatError(f"{path}: storage {storage.key!r} has {nbytes} bytes for {storage.n} {storage.dtype}")
    check_shape(path, name, tensor.shape)
    if tensor.offset + span(tensor.shape, tensor.strides) > storage.n:
        raise FormatError(f"{path}: {name!r} reaches beyond its storage of {storage.n} elements")
    _check_strides(path, name, tensor)
    strides = None if tensor.strides == dense_strides(tensor.shape) else tensor.strides
    return Stored(path, offset + tensor.offset * itemsize(storage.dtype), storage.dtype, tensor.shape, strides)


def _check_strides(path: Path, name: str, tensor: _Tensor) -> None:
    """A few bytes that stand for many elements (stride 0) would make a large file of a small one."""
    axes = sorted((stride, n) for n, stride in zip(tensor.shape, tensor.strides, strict=True) if n > 1)
    end = 1
    for stride, n in axes:
        if stride < end:
            raise FormatError(f"{path}: elements of {name!r} overlap")
        end = stride * n


# ---------------------------------------------------------------- since PyTorch 1.6


def _read_zip(path: Path, file: BinaryIO, size: int) -> tuple[Any, _Places]:
    """TOP/data.pkl, and a storage in each TOP/data/KEY; everything in the archive is under TOP."""
    entries = read_entries(path, file, size)
    tops = {name.partition("/")[0] for name in entries}
    top = min(tops, default="")
    pickle = entries.get(f"{top}/data.pkl")
    if len(tops) != 1 or pickle is None:
        raise FormatError(f"{path}: a zip archive that is no PyTorch checkpoint")
    if pickle.nbytes > MAX_PICKLE_NBYTES:
        raise FormatError(f"{path}: a pickle of {pickle.nbytes} bytes, at most {MAX_PICKLE_NBYTES} are read")
    for entry in entries.values():
        check_entry(path, file, entry)
    if (order := entries.get(f"{top}/byteorder")) and _bytes(file, order.offset, min(order.nbytes, 16)) != b"little":
        raise UnsupportedError(f"{path}: numbers are big-endian")
    vm = _Interpreter(path, _bytes(file, pickle.offset, pickle.nbytes), 0, pickle.offset)
    root = vm.run()
    if vm.at != pickle.nbytes:
        raise FormatError(f"{path}: bytes behind the pickle's end", offset=pickle.offset + vm.at)
    prefix = f"{top}/data/"
    data = {name.removeprefix(prefix): e for name, e in entries.items() if name.startswith(prefix)}
    return root, {key: (entry.offset, entry.nbytes) for key, entry in data.items()}


def _bytes(file: BinaryIO, offset: int, nbytes: int) -> bytes:
    file.seek(offset)
    return file.read(nbytes)


# ---------------------------------------------------------------- before PyTorch 1.6


def _read_legacy(path: Path, file: BinaryIO, size: int) -> tuple[Any, _Places]:
    """Five pickles (a magic number, the protocol, the machine, the object, the keys of the storages), then for each
    key the number of elements and the elements."""
    code = _bytes(file, 0, MAX_PICKLE_NBYTES)
    at, values, storages = 0, [], {}
    for _ in range(5):
        vm = _Interpreter(path, code, at, 0)
        values.append(vm.run())
        storages.update(vm.storages)
        at = vm.at
    _, protocol, machine, root, keys = values
    if protocol != LEGACY_PROTOCOL or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise UnsupportedError(f"{path}: an old PyTorch checkpoint of an unknown kind; save it with a newer PyTorch")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != storages.keys():
        raise FormatError(f"{path}: its list of storages is not that of its tensors")
    if len(keys) != len(storages):
        raise FormatError(f"{path}: its list of storages has one twice")
    places: _Places = {}
    for key in keys:
        nbytes = storages[key].n * itemsize(storages[key].dtype)
        if _bytes(file, at, 8) != struct.pack("<Q", storages[key].n) or nbytes > size - at - 8:
            raise FormatError(f"{path}: storage {key!r} has another size, or the file ends in it", offset=at)
        places[key] = (at + 8, nbytes)
        at += 8 + nbytes
    if at != size:
        raise FormatError(f"{path}: {size - at} bytes behind the last storage", offset=at)
    return root, places
