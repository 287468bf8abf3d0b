"""Token stores of other programs, opened as ours are: Megatron, llm.c, datatrove, nanoGPT, and our own first format.

    Megatron    NAME.idx and NAME.bin: megatron/core/datasets/indexed_dataset.py of NVIDIA/Megatron-LM
    llm.c       NAME.bin with a header of 256 int32: dev/data/data_common.py of karpathy/llm.c
    datatrove   NAME.ds and NAME.ds.index: pipeline/tokens of huggingface/datatrove
    nanoGPT     NAME.bin, uint16 and nothing else: data/*/prepare.py of karpathy/nanoGPT
    ours        DIGEST.tokens of runs before there were stores

None is trusted: sizes are checked against the files before anything is read, ids when they are. Used by the commands
`train` and `data`.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ggmlgraph.data.sources import Source
from ggmlgraph.data.store import IdFile, TokenStore, is_store, open_store
from ggmlgraph.errors import FormatError, GGError, UsageError
from ggmlgraph.files.regular import open_regular
from ggmlgraph.tokenizers.base import Tokenizer

_MEGATRON, _MEGATRON_HEADER = b"MMIDIDX\0\0", 34  # bytes
_MEGATRON_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_LLMC, _LLMC_NBYTES = {(20240520, 1): "<u2", (20240801, 7): "<u4"}, 1024
_OLD, _OLD_NBYTES = b"ggtokens 1\n", 512
_MOST_ENTRIES = 1 << 33  # of an index
_LOOKED_AT, _SPOT = 256, 1 << 16  # places of a file whose bytes make its digest, and their size
_PART = 1 << 20  # entries looked at together


def kind_of(path: Path) -> Callable[[Path], TokenStore] | None:
    """What opens a path, None if it is no token store. Only its name and first bytes are looked at."""
    if path.is_dir():
        return open_store if is_store(path) else None
    if not path.is_file():
        return None
    start = _start(path, 12)
    by_name: dict[str, Callable[[Path], TokenStore]] = {".idx": _megatron, ".ds": _datatrove, ".bin": _nanogpt}
    if start.startswith(_OLD):
        return open_old
    if path.suffix == ".bin" and path.with_suffix(".idx").is_file():
        return _megatron
    if len(start) == 12 and tuple(np.frombuffer(start[:8], "<i4").tolist()) in _LLMC:
        return _llmc
    return by_name.get(path.suffix)


def open_tokens(specs: Sequence[str]) -> TokenStore | None:
    """The stores that paths and patterns name, one after the other as one; None if none is a store.

    Raises FormatError for one that is damaged, UsageError for stores among other files, or of different tokenizers.
    """
    paths = [path for spec in specs for path in _matching(spec)]
    kinds = [kind_of(path) for path in paths]
    if not any(kinds):
        return None
    stores = {}
    for path, opens in zip(paths, kinds, strict=True):
        if opens is None:
            raise UsageError(f"{path} is no token store, and {paths[[bool(k) for k in kinds].index(True)]} is one")
        store = opens(path)
        stores[store.files[0].path] = store  # NAME.idx and NAME.bin are one
    first, *others = stores.values()
    if not others:
        return first
    if len({each.tokenizer_digest for each in stores.values()}) > 1:
        raise UsageError(f"{first.name} and {others[0].name} are of different tokenizers")
    all_ = [first, *others]
    ids = [each.max_id for each in all_ if each.max_id is not None]
    return replace(
        first, name=f"{first.name} and {len(others)} more", files=[file for each in all_ for file in each.files],
        digest=blake2b(" ".join(each.digest for each in all_).encode(), digest_size=16).hexdigest(),
        max_id=max(ids) if len(ids) == len(all_) else None, n_unknown=sum(each.n_unknown for each in all_),
        manifest=None, _readers=[],
    )  # fmt: skip


def _matching(spec: str) -> list[Path]:
    if glob.has_magic(spec) and not os.path.lexists(spec):
        return [Path(name) for name in sorted(glob.glob(spec, recursive=True))]  # noqa: PTH207
    return [Path(spec)]


# ---------------------------------------------------------------- the formats


def _megatron(path: Path) -> TokenStore:
    index, ids = path.with_suffix(".idx"), path.with_suffix(".bin")
    start, nbytes = _start(index, _MEGATRON_HEADER), _size(index)
    if not start.startswith(_MEGATRON) or len(start) < _MEGATRON_HEADER:
        raise FormatError(f"{index}: not an index of Megatron's", offset=0)
    version, (n, n_ends) = int.from_bytes(start[9:17], "little"), np.frombuffer(start[18:34], "<u8").tolist()
    if version != 1 or start[17] not in _MEGATRON_TYPES:
        raise FormatError(f"{index}: version {version} with ids of type {start[17]}, which are not known", offset=9)
    if max(n, n_ends) > _MOST_ENTRIES or nbytes not in (whole := 34 + 12 * n + 8 * n_ends, whole + n):
        raise FormatError(f"{index}: {nbytes} bytes do not hold {n} sequences and {n_ends} documents", offset=18)
    dtype, total = np.dtype(_MEGATRON_TYPES[start[17]]), 0
    lengths, places = _mapped(index, "<i4", 34, n), _mapped(index, "<i8", 34 + 4 * n, n)
    for at in range(0, n, _PART):
        part = lengths[at : at + _PART].astype(np.int64)
        wanted = total + np.cumsum(part) - part
        wrong = (part < 0) | (places[at : at + _PART] != wanted * dtype.itemsize)
        if wrong.any():
            i = at + int(wrong.argmax())
            raise FormatError(f"{index}: sequence {i} does not begin where the one before it ends", offset=34 + 4 * i)
        total += int(part.sum())
    ends = _mapped(index, "<i8", 34 + 12 * n, n_ends)
    if n_ends and not (_is_rising(ends) and ends[0] == 0 and ends[-1] == n):
        raise FormatError(f"{index}: its documents are not in order", offset=34 + 12 * n)
    return _whole(ids, IdFile(ids, total, dtype), index)


def _llmc(path: Path) -> TokenStore:
    magic, version, n = np.frombuffer(_start(path, 12), "<i4").tolist()
    return _whole(path, IdFile(path, n, np.dtype(_LLMC[magic, version]), _LLMC_NBYTES), path)


def _datatrove(path: Path) -> TokenStore:
    index = path.with_name(f"{path.name}.index")
    nbytes, n = _size(path), _size(index) // 8
    if n == 0 or _size(index) % 8:
        raise FormatError(f"{index}: not an index of datatrove's", offset=0)
    ends = _mapped(index, "<u8", 0, n)
    n_tokens = int(ends[-1])
    if not _is_rising(ends) or not n_tokens or nbytes not in (2 * n_tokens, 4 * n_tokens):
        raise FormatError(f"{index}: its last document ends at token {n_tokens}, {path.name} has {nbytes} bytes")
    return _whole(path, IdFile(path, n_tokens, np.dtype(f"<u{nbytes // n_tokens}")), index)


def _nanogpt(path: Path) -> TokenStore:
    return _whole(path, IdFile(path, _size(path) // 2, np.dtype("<u2")), path)


def _whole(path: Path, ids: IdFile, said: Path) -> TokenStore:
    """The store, if the file of ids is as long as was said."""
    nbytes, wanted = _size(path), ids.offset + ids.n_tokens * ids.dtype.itemsize
    if nbytes != wanted or ids.n_tokens <= 0:
        raise FormatError(f"{path} has {nbytes} bytes, by {said.name} it would be {wanted}", offset=0)
    return TokenStore(path, str(path), [ids], _digest(path, nbytes))


def _digest(path: Path, nbytes: int) -> str:
    """Of the file's size and of its bytes at so many places: all of a small one."""
    digest = blake2b(str(nbytes).encode(), digest_size=16)
    with open_regular(path)[0] as file:
        for i in range(_LOOKED_AT):
            file.seek(max(0, nbytes - _SPOT) * i // (_LOOKED_AT - 1))
            digest.update(file.read(_SPOT))
    return digest.hexdigest()


def _is_rising(numbers: NDArray[Any]) -> bool:
    return all(
        bool((numbers[at + 1 : at + 1 + _PART] >= numbers[at : at + _PART][: len(numbers) - at - 1]).all())
        for at in range(0, len(numbers) - 1, _PART)
    )


def _mapped(path: Path, dtype: str, offset: int, n: int) -> NDArray[Any]:
    return np.memmap(path, dtype, "r", offset, (n,)) if n else np.empty(0, dtype)


def _start(path: Path, n: int) -> bytes:
    with _open(path)[0] as file:
        return bytes(file.read(n))


def _size(path: Path) -> int:
    file, nbytes = _open(path)
    file.close()
    return nbytes


def _open(path: Path) -> tuple[Any, int]:
    try:
        return open_regular(path)
    except GGError as error:
        raise FormatError(str(error)) from None


# ---------------------------------------------------------------- ours, the first


class _OldHeader(msgspec.Struct, frozen=True):
    dtype: Literal["<u2", "<i4"]
    n_tokens: int
    n_vocab: int
    max_id: int
    digest: str
    tokenizer: str = ""
    n_unknown: int = 0


def open_old(path: Path) -> TokenStore:
    """A token file of the first format. Raises FormatError."""
    start = _start(path, _OLD_NBYTES)
    try:
        header = msgspec.json.decode(start.removeprefix(_OLD), type=_OldHeader)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: not a token file: {error}", offset=0) from None
    ids = IdFile(path, header.n_tokens, np.dtype(header.dtype), _OLD_NBYTES)
    store = _whole(path, ids, path)
    return replace(
        store, digest=header.digest, n_vocab=header.n_vocab, max_id=header.max_id, n_unknown=header.n_unknown
    )


def old_digest(sources: Sequence[Source], tokenizer: Tokenizer) -> str:
    """The digest, and the name before .tokens, of the first format's file of these sources."""
    digest = blake2b(_OLD, digest_size=16)
    for part in (tokenizer.to_bytes(), *(source.digest().encode() for source in sources)):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
