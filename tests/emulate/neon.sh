#!/bin/sh
# neon.sh BIN - builds the package for AArch64 and runs the tests of every op on its NEON level under qemu-user, with
# Debian's Python and the wheels for that architecture. BIN: the virtual environment's programs. Run by `make emulate`.
set -eu
bin=$1 build=$PWD/build/emulate/neon root=$PWD/build/emulate/aarch64
packages="libc6 libcrypt1 libexpat1 libffi8 libgcc-s1 libpython3.11-minimal libpython3.11-stdlib libssl3 libstdc++6
python3.11-minimal zlib1g"

for program in aarch64-linux-gnu-gcc qemu-aarch64 apt-get; do
    if ! command -v $program >/dev/null; then
        echo "skipped: NEON needs $program (Debian: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)"
        exit 0
    fi
done

# Debian's Python for AArch64, unpacked; the system's own package lists are not touched.
if [ ! -e "$root/ready" ]; then
    rm -rf "$root"
    mkdir -p "$root/apt/lists/partial" "$root/apt/archives/partial" "$root/site"
    apt="apt-get -q -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::State=$root/apt
        -o Dir::Cache=$root/apt -o Dir::State::status=/dev/null"
    if ! $apt update >"$root/apt/log" 2>&1 || ! (cd "$root/apt" && $apt download $packages >log 2>&1); then
        echo "skipped: Debian's packages for arm64 cannot be had: $(tail -n 1 "$root/apt/log")"
        exit 0
    fi
    for package in "$root"/apt/*.deb; do dpkg -x "$package" "$root"; done
    "$bin/python" -m pip install --quiet --no-deps --only-binary :all: --target "$root/site" --python-version 3.11 \
        --implementation cp --abi cp311 --abi abi3 --abi none --platform manylinux_2_28_aarch64 \
        --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
        numpy cffi msgspec safetensors
    "$bin/python" -m pip install --quiet --target "$root/site" pytest click
    touch "$root/ready"
fi

# The extension module, by hand: a cross build by meson would want this Python's own development files.
rm -rf "$build"
mkdir -p "$build/generated" "$build/ggmlgraph"
(cd ggmlgraph && cp -r $(ls | grep -v "^models$") "$build/ggmlgraph")
cp -r models "$build/ggmlgraph/models"
"$bin/python" runtime/gen.py "$build/generated"
"$bin/python" runtime/build.py runtime/include/gg.h "$build/generated/_runtime.c"
include=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
aarch64-linux-gnu-gcc -std=c11 -O2 -fPIC -shared -fno-math-errno -fno-trapping-math -ffp-contract=off \
    -D_DEFAULT_SOURCE -DPy_LIMITED_API=0x030b0000 -DGG_ISA=neon -I"$include" -I"$build/generated" -Iruntime/include \
    -Iruntime/src -Iruntime/kernels runtime/src/*.c runtime/kernels/*.c "$build"/generated/*.c \
    -o "$build/ggmlgraph/_runtime.abi3.so" -lm -pthread

PYTHONPATH=$build:$root/site qemu-aarch64 -L "$root" "$root/usr/bin/python3.11" -P -m pytest -p no:cacheprovider \
    tests/execution/test_precision.py tests/table/test_ops.py -k "(forward or exact or rounded or rounding or gradient) and neon"
