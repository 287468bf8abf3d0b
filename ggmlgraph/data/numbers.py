"""Numbers in a file, read where and when they are wanted.

A map would be as quick, but where its file shrinks meanwhile, the process ends by a signal; a read that comes back
short is an error to be told. Used by text.py and arrays.py for what training draws from.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggmlgraph.errors import DataError
from ggmlgraph.files.regular import open_regular


class Numbers:
    """The numbers of a file from byte `offset` on."""

    def __init__(self, path: Path, offset: int, dtype: np.dtype[Any]) -> None:
        self.path, self._offset, self._dtype = path, offset, dtype
        with open_regular(path)[0] as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def at(self, starts: NDArray[np.int64], n: int) -> NDArray[Any]:
        """The n numbers from each start on: (len(starts), n). Raises DataError where the file has fewer."""
        found = np.empty((len(starts), n), self._dtype)
        for row, start in zip(found, starts.tolist(), strict=True):
            view = memoryview(row.view(np.uint8))
            at = self._offset + start * self._dtype.itemsize
            while view:
                n_read = os.preadv(self._descriptor, [view], at)
                if n_read == 0:
                    raise DataError(f"{self.path}: the file has become shorter while it was in use")
                view, at = view[n_read:], at + n_read
        return found
