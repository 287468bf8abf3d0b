#!/bin/sh
# avx512.sh BIN - builds the package with its AVX-512 levels emulated (avx512.h) and runs the tests of every op on them.
# BIN: the virtual environment's programs. Run by `make emulate`.
set -eu
bin=$1 build=build/emulate/avx512

if [ "$(uname -m)" != x86_64 ]; then
    echo "skipped: the AVX-512 levels are built on x86-64 only"
    exit 0
fi
if ! echo '#include <simde/x86/avx512.h>' | "${CC:-cc}" -E -x c - >/dev/null 2>&1; then
    echo "skipped: AVX-512 is emulated by SIMDe (Debian: apt-get install libsimde-dev)"
    exit 0
fi
rm -rf "$build"
"$bin/python" -m pip install --quiet --no-deps --target "$build" . -Csetup-args=-Demulate=true
PYTHONPATH=$build "$bin/pytest" -k avx512 tests/table/test_ops.py tests/execution/test_precision.py \
    tests/execution/test_runtime.py
