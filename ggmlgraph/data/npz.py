"""One array of an .npz file, which is a zip of .npy files. It comes from anyone: nothing in it is executed, and what it
says of sizes is checked before memory is taken. Used by arrays.py.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.errors import DataError
from ggmlgraph.files.regular import open_regular
from ggmlgraph.machine import available_memory


def read(path: Path, name: str) -> NDArray[Any]:
    """The array `name`, in memory. Raises DataError if there is none, or no memory for it."""
    with open_regular(path)[0] as file:
        try:
            with zipfile.ZipFile(file) as archive:
                member = f"{name}.npy"
                if member not in archive.namelist():
                    names = ", ".join(each.removesuffix(".npy") for each in archive.namelist()[:12])
                    raise DataError(f"{path} has no array {name!r}; it has {names or 'none'}")
                with archive.open(member) as stream:
                    return _array(stream, archive.getinfo(member).file_size, f"{path}: {name}")
        except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: not an .npz file of numbers: {' '.join(str(error).split())[:120]}") from None


def _array(stream: IO[bytes], size: int, what: str) -> NDArray[Any]:
    """The .npy file of `size` bytes."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f".npy of version {version}")
    shape, in_columns, dtype = readers[version](stream)
    if dtype.hasobject or dtype.kind not in "biufc":
        raise ValueError(f"{dtype} are no numbers")
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes != size - stream.tell() or min(shape, default=1) < 0:
        raise ValueError(f"{shape} of {dtype} in {size} bytes")
    if (free := available_memory()) is not None and nbytes > free:
        raise DataError(f"{what} takes {nbytes:,} bytes, {free:,} are free")
    values = np.frombuffer(stream.read(nbytes), dtype)
    return values.reshape(shape[::-1]).T if in_columns else values.reshape(shape)
