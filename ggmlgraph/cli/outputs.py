"""What a command writes is never what it reads. Used by commands.py for every command, before its work begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ggmlgraph.errors import UsageError
from ggmlgraph.table.dialect import MAGIC

WRITTEN = ("output", "target")  # names of arguments
INTO_FOLDERS = ("train", "finetune", "export-hf", "demo")  # which see to it that nothing there is written over
STARTS = {"convert": MAGIC.to_bytes(4, "little"), "export-gguf": b"GGUF"}  # of the files that they write


def check(command: str, options: Mapping[str, Any]) -> None:
    """Raises UsageError if a file to be written is there and is an argument too, or lies in a folder that is.

    In such a folder what the command wrote earlier may be written again: it is known by how it begins.
    """
    inputs = [path for name, value in options.items() if name not in WRITTEN for path in _paths(value)]
    for output in (options[name] for name in WRITTEN if options.get(name) and command not in INTO_FOLDERS):
        read = [path for path in inputs if output.is_file() and _is_read(output, path, STARTS.get(command))]
        if read:
            raise UsageError(f"{output} would be written over, and {read[0]} is read: choose another -o")


def _paths(value: Any) -> Iterator[Path]:
    """What an argument may name: FILE, FILE.py:FUNCTION, NAME=FILE, or several of them."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, str):
        yield from (Path(part) for part in (value, value.rpartition(":")[0], value.partition("=")[2]) if part)
    elif isinstance(value, tuple):
        for each in value:
            yield from _paths(each)


def _is_read(output: Path, path: Path, earlier: bytes | None) -> bool:
    try:
        if path.is_file():
            return path.samefile(output)
        if not path.is_dir() or path.resolve() not in output.resolve().parents:
            return False
        with output.open("rb") as file:
            return earlier is None or file.read(len(earlier)) != earlier
    except (OSError, ValueError):  # no name of a file
        return False
