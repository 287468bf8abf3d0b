"""JSON of other programs: objects, bounded in size, with the Infinity and NaN that Python writes and JSON has not.

Used by `settings`, `folder` and the sources of checkpoints.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ggmlgraph.errors import FormatError
from ggmlgraph.files.regular import read_regular
from ggmlgraph.files.strangers import stranger

MAX_NBYTES = 64 << 20


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises FormatError, or as `open_regular`."""
    return parse_json(read_regular(path, MAX_NBYTES), path)


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """The object that `data`, the content of a file, spells. Raises FormatError."""
    if reason := stranger(data):
        raise FormatError(f"{path}: {reason}")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: not a JSON object")
    return value
