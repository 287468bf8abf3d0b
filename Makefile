# Every target sets itself up: it needs python3 (3.11 or newer), a C compiler and the package registry.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml meson.build $(shell find ggmlgraph models runtime -type f -not -path '*/__pycache__/*')
ASAN := build/asan
TSAN := build/tsan

.PHONY: demo test lint sanitize tsan bench peers docs clean

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
	PYTHONMALLOC=malloc PYTHONPATH=$(ASAN) $(BIN)/pytest tests/test_ops.py tests/test_runtime.py tests/test_import.py

# And under ThreadSanitizer: kernels, barrier and pool with 1, 2, 3 and 8 threads. A race is printed and fails the target.
tsan: $(TSAN)/installed
	LD_PRELOAD="$$($(CC) -print-file-name=libtsan.so)" TSAN_OPTIONS=exitcode=66 PYTHONPATH=$(TSAN) \
	$(BIN)/pytest --capture=sys tests/test_runtime.py tests/test_ops.py -k number_of_threads

# Ten to fifteen minutes. ONLY="gemm steps" measures some of: peak gemm steps growth.
bench: $(VENV)/installed
	$(BIN)/pip install --quiet 'torch==2.13.0'
	$(BIN)/python tests/bench $(ONLY)

# Against the programs we are compared with. They are large: PyTorch is installed only here.
peers: $(VENV)/installed
	$(BIN)/pip install --quiet 'torch==2.13.0'
	$(BIN)/pytest tests/peers

docs: $(VENV)/installed
	$(BIN)/python docs/ops.py > docs/ops.md

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

clean:
	rm -rf $(VENV) build
