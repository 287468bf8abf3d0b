# Every target sets itself up: it needs python3 (3.11 or newer), GCC 12 or clang, and the package registry.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PEERS := torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 llama-cpp-python==0.3.36
SOURCES := pyproject.toml meson.build $(shell find ggmlgraph models runtime -type f -not -path '*/__pycache__/*')
ASAN := build/asan
TSAN := build/tsan
FUZZ := build/fuzz
SECONDS ?= 60

.PHONY: demo test lint sanitize tsan emulate fuzz bench peers docs clean

demo: $(VENV)/installed
	$(BIN)/ggmlgraph demo

test: $(VENV)/installed
	$(BIN)/pytest tests --ignore=tests/peers
	$(MAKE) sanitize

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The C core once more, under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(ASAN)/installed
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
	PYTHONMALLOC=malloc PYTHONPATH=$(ASAN) RANDOM_GRAPHS=500 $(BIN)/pytest tests/table/test_ops.py \
	  tests/execution/test_runtime.py tests/execution/test_program.py tests/execution/test_randomgraphs.py tests/core

# And under ThreadSanitizer: kernels, barrier and pool with 1, 2, 3 and 8 threads. A race is printed and fails the target.
tsan: $(TSAN)/installed
	LD_PRELOAD="$$($(CC) -print-file-name=libtsan.so)" TSAN_OPTIONS=exitcode=66 PYTHONPATH=$(TSAN) RANDOM_GRAPHS=200 \
	$(BIN)/pytest --capture=sys tests/execution/test_runtime.py tests/execution/test_randomgraphs.py \
	  tests/table/test_ops.py -k number_of_threads

# Changed graph files: through the importer, through all that runs behind it, and through both readers; changed metadata;
# random graphs beside float64; then the share of the reader's lines that files reach. SECONDS=3600 for an hour. Ends with
# an error at the first finding.
fuzz: $(FUZZ)/built
	rm -rf $(FUZZ)/samples $(FUZZ)/six && $(BIN)/python tests/samplefiles.py $(FUZZ)/samples $(FUZZ)/six
	mkdir -p $(FUZZ)/kept
	cd $(FUZZ) && export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 && \
	asan/fuzz replay ../../tests/fuzz/corpus samples kept && \
	asan/fuzz bytes six && \
	asan/fuzz starve six ../../tests/fuzz/corpus && \
	asan/fuzz parse $$(( $(SECONDS) / 5 )) $$(date +%s) ../../tests/fuzz/corpus samples kept && \
	asan/fuzz run $$(( $(SECONDS) / 5 )) $$(date +%s) ../../tests/fuzz/corpus samples kept
	$(BIN)/python tests/readers.py $$(( $(SECONDS) / 5 ))
	$(BIN)/python tests/metadatachanges.py $$(( $(SECONDS) / 5 ))
	$(BIN)/python tests/graphcheck.py $$(( $(SECONDS) / 5 ))
	cd $(FUZZ)/coverage && rm -f libcore.a.p/*.gcda && ./fuzz replay ../../../tests/fuzz/corpus ../samples ../kept && \
	gcov --no-output libcore.a.p/*.gcda | grep -A 1 -E "src/(import|graph|shape[a-z_]*)\.c'"

# The tests of every op on levels this processor has not: SIMDe makes portable code of the AVX-512 ones, NEON runs on an
# emulated AArch64. A part that lacks its Debian packages is skipped and says so.
emulate: $(VENV)/installed
	sh tests/emulate/avx512.sh $(BIN)
	sh tests/emulate/neon.sh $(BIN)

# Twenty minutes. ONLY="gemm steps" measures some of: peak gemm steps growth bf16 convert decode (beside
# llama.cpp where llama-cpp-python is installed).
bench: $(VENV)/installed
	$(BIN)/pip install --quiet 'torch==2.13.0'
	$(BIN)/python tests/bench $(ONLY)

# Against the programs we are compared with. They are large, and llama.cpp is built, which takes eight minutes once.
peers: $(VENV)/installed
	$(BIN)/pip install --quiet $(PEERS)
	$(BIN)/pytest tests/peers

docs: $(VENV)/installed
	$(BIN)/python docs/ops.py > docs/ops.md
	$(BIN)/python docs/support.py > docs/support.md

$(VENV)/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --force-reinstall --no-deps . && $(BIN)/pip install --quiet '.[test]'
	touch $@

$(ASAN)/installed: $(VENV)/installed
	rm -rf $(ASAN)
	$(BIN)/pip install --quiet --no-deps --target $(ASAN) . -Csetup-args=-Db_sanitize=address,undefined \
	  -Csetup-args=-Db_lundef=false -Csetup-args=-Dbuildtype=debugoptimized
	touch $@

$(TSAN)/installed: $(VENV)/installed
	rm -rf $(TSAN)
	$(BIN)/pip install --quiet --no-deps --target $(TSAN) . -Csetup-args=-Db_sanitize=thread \
	  -Csetup-args=-Db_lundef=false -Csetup-args=-Dbuildtype=debugoptimized
	touch $@

$(FUZZ)/built: $(VENV)/installed $(shell find tests/fuzz -name '*.[ch]')
	$(BIN)/pip install --quiet 'meson>=1.3' ninja
	test -d $(FUZZ)/asan || PATH=$(abspath $(BIN)):$$PATH meson setup -Dfuzz=true -Dbuildtype=debugoptimized \
	  -Db_sanitize=address,undefined -Db_lundef=false $(FUZZ)/asan
	test -d $(FUZZ)/coverage || PATH=$(abspath $(BIN)):$$PATH meson setup -Dfuzz=true -Dbuildtype=debug -Db_coverage=true \
	  $(FUZZ)/coverage
	for build in asan coverage; do PATH=$(abspath $(BIN)):$$PATH meson compile -C $(FUZZ)/$$build fuzz || exit 1; done
	touch $@

clean:
	rm -rf $(VENV) build
