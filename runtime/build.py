"""Emit the C source of the extension module `ggmlgraph._runtime`: gg.h is both the cdef and the header.

python build.py GG_H OUTPUT_C
"""

from __future__ import annotations

import sys
from pathlib import Path

from cffi import FFI


def main(header: Path, out: Path) -> None:
    """Write the C file that cffi makes of `header`."""
    ffi = FFI()
    ffi.cdef(header.read_text(encoding="utf-8"))
    ffi.set_source("ggmlgraph._runtime", '#include <stdint.h>\n#include "gg.h"\n', py_limited_api=True)
    ffi.emit_c_code(str(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
