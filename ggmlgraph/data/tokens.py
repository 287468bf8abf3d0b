"""Token files: texts become ids, once, in bounded memory, in a memory-mapped file that later runs reuse.

Used by `train`; text.py cuts such a file into windows.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ggmlgraph.data.corpus import TextSource, open_source
from ggmlgraph.durable import replacing
from ggmlgraph.errors import DataError, FormatError, GGError, UsageError
from ggmlgraph.files.regular import open_regular
from ggmlgraph.tokenizers.base import Tokenizer

_MAGIC = b"ggtokens 1\n"
MOST_UNKNOWN = 0.25  # of the tokens, of which one may stand for a whole word: more, and the text is in other letters
HEADER_NBYTES = 512  # magic, one line of JSON, spaces; then the ids, little-endian


@dataclass(frozen=True)
class TokenHeader:
    """What a token file says about its ids."""

    dtype: Literal["<u2", "<i4"]  # uint16 if n_vocab <= 65536, else int32
    n_tokens: int
    n_vocab: int  # of the tokenizer
    max_id: int  # the highest id there is; -1 without tokens
    digest: str  # of the tokenizer and of the sources' content
    tokenizer: str = ""  # digest of the tokenizer alone; empty in files that do not say it
    n_unknown: int = 0  # tokens that stand for what the tokenizer has no ids for

    @property
    def unknown(self) -> float:
        """Their share."""
        return self.n_unknown / max(1, self.n_tokens)


@dataclass(frozen=True)
class TokenFile:
    """A memory-mapped token file; `name` is what errors call the text."""

    path: Path
    name: str
    header: TokenHeader
    ids: NDArray[Any]  # uint16 or int32 (n_tokens,), read-only
    reused: bool  # it was there already


def prepare(sources: Sequence[str | Path], tokenizer: Tokenizer, cache_dir: str | Path) -> TokenFile:
    """The sources' ids, one source after the other, in cache_dir/DIGEST.tokens.

    The digest is of the tokenizer and of the sources' content, not of their paths, so a moved file is not tokenised
    again and a changed one is. The file appears complete or not at all; one that is damaged is made anew.
    Raises DataError for a source that cannot be read or encoded, or is mostly unknown to the tokenizer; UsageError for
    no or an unknown source.
    """
    if not sources:
        raise UsageError("no text to tokenise")
    opened = [open_source(source) for source in sources]
    name = opened[0].name if len(opened) == 1 else f"{opened[0].name} and {len(opened) - 1} more"
    digest = _digest(opened, tokenizer)
    path = Path(cache_dir) / f"{digest}.tokens"
    try:
        header, ids = _map(path)
        if header.digest == digest:
            return TokenFile(path, name, header, ids, reused=True)
    except (GGError, OSError):
        pass  # made anew; if the folder itself is at fault, writing says so
    try:
        _write_tokens(path, opened, tokenizer, digest)
        header, ids = _map(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None
    return TokenFile(path, name, header, ids, reused=False)


def reopen(folder: Path, digest: str, tokenizer: Tokenizer) -> TokenFile | None:
    """The token file of a digest that `prepare` wrote to the folder with this tokenizer, without its sources.

    None if it is not there, or damaged.
    """
    path = folder / f"{digest}.tokens"
    try:
        header, ids = _map(path)
    except (GGError, OSError):
        return None
    if (header.digest, header.tokenizer) != (digest, _digest([], tokenizer)):
        return None
    return TokenFile(path, str(path), header, ids, reused=True)


def keep(tokens: TokenFile, folder: Path) -> TokenFile:
    """The same file, copied to another folder. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / tokens.path.name
    with replacing(path) as temporary:
        shutil.copyfile(tokens.path, temporary)
    return replace(tokens, path=path)


def _digest(sources: Sequence[TextSource], tokenizer: Tokenizer) -> str:
    digest = blake2b(_MAGIC, digest_size=16)
    for part in (tokenizer.to_bytes(), *(source.digest().encode() for source in sources)):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _write_tokens(path: Path, sources: Sequence[TextSource], tokenizer: Tokenizer, digest: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(bytes(HEADER_NBYTES))
        header = _write_ids(stream, sources, tokenizer, digest)
        stream.seek(0)
        stream.write((_MAGIC + msgspec.json.encode(header)).ljust(HEADER_NBYTES - 1) + b"\n")


def _write_ids(stream: BinaryIO, sources: Sequence[TextSource], tokenizer: Tokenizer, digest: str) -> TokenHeader:
    dtype: Literal["<u2", "<i4"] = "<u2" if tokenizer.n_vocab <= 1 << 16 else "<i4"
    n_tokens, n_unknown, max_id = 0, 0, -1
    for source in sources:
        try:
            for ids in tokenizer.encode_stream(source.chunks()):
                stream.write(ids.astype(dtype).tobytes())
                n_tokens += ids.size
                n_unknown += int(np.count_nonzero(ids == tokenizer.unk_id)) if tokenizer.unk_id is not None else 0
                max_id = max(max_id, int(ids.max(initial=-1)))
        except DataError as error:
            message = str(error) if str(error).startswith(source.name) else f"{source.name}: {error}"
            raise DataError(message, offset=error.offset) from None
    header = TokenHeader(dtype, n_tokens, tokenizer.n_vocab, max_id, digest, _digest([], tokenizer), n_unknown)
    if header.unknown > MOST_UNKNOWN:
        raise DataError(
            f"{sources[0].name}: {header.unknown:.0%} of the tokens would stand for what the tokenizer does not know: "
            "give a tokenizer that has these characters"
        )
    return header


def _map(path: Path) -> tuple[TokenHeader, NDArray[Any]]:
    """Map a token file. Raises FormatError if it is not a complete one, GGError or OSError if it cannot be read."""
    stream, nbytes = open_regular(path)
    with stream:
        start = stream.read(HEADER_NBYTES)
    try:
        header = msgspec.json.decode(start.removeprefix(_MAGIC), type=TokenHeader)
    except msgspec.DecodeError as error:
        raise FormatError(f"{path}: not a token file: {error}", offset=0) from None
    wanted = HEADER_NBYTES + header.n_tokens * np.dtype(header.dtype).itemsize
    if not start.startswith(_MAGIC) or nbytes != wanted:
        raise FormatError(f"{path}: not a complete token file: {nbytes} bytes instead of {wanted}", offset=0)
    if header.n_tokens == 0:
        return header, np.empty(0, header.dtype)  # an empty range cannot be mapped
    return header, np.memmap(path, header.dtype, "r", HEADER_NBYTES, (header.n_tokens,))
