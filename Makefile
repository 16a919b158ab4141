# make bench   the kernels against the vendor library on the lectures' layers, and the report
# make test    the whole suite but its long sweeps
# make gpu     on a machine with a GPU: the kernels tested and measured there
# The first two need Python 3.10 or later and a C++ compiler, and nothing before them: .venv is made first.
# Another interpreter, with all of that installed, is used by `make test PYTHON=...`.

ifeq ($(origin PYTHON), undefined)
PYTHON := .venv/bin/python
READY := .venv/ready
endif
BUILT := build/built
SOURCES := CMakeLists.txt setup.py $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')
BUILT_CUDA := build/built-cuda
PYTEST := $(PYTHON) -m pytest
CNNKERN := $(dir $(PYTHON))cnnkern
RESULTS := bench/results/cpu-2-threads

SANITIZED := build/sanitize/package

.PHONY: bench gpu resources results bench-kernels test test-full test-sanitize build lint check-spills clean

bench: $(BUILT)
	$(CNNKERN) bench

# The record that is committed, and the table in README.md made from it: 15 minutes on a quiet machine.
results: export CNNKERN_TUNED := 0
results: $(BUILT)
	$(CNNKERN) bench --suite targets --budget 500 --out $(RESULTS)
	$(CNNKERN) bench models --out $(RESULTS)
	$(CNNKERN) bench fused --out $(RESULTS)
	$(CNNKERN) bench overhead --out $(RESULTS)
	$(CNNKERN) bench report $(RESULTS) --readme README.md

# On a machine with a GPU: tests, benchmarks and tuning there, in stages that can be resumed. OUT= is the directory of
# results, STAGE= picks one. The interpreter is that of the machine's CUDA torch; nothing is downloaded.
gpu: PYTHON := $(if $(filter .venv/%,$(PYTHON)),python3,$(PYTHON))
gpu: OUT ?= bench/results/gpu
gpu:
	$(PYTHON) -c "import cnnkern.bench, cnnkern.triton_kernels" 2>/dev/null || \
	$(PYTHON) -m pip install --no-index --no-deps --no-build-isolation -e .
	$(PYTHON) -m cnnkern.bench.gpu --out $(OUT) $(addprefix --stage ,$(STAGE))

bench-kernels: $(BUILT)
	$(PYTEST) tests/bench_kernels.py

test: $(BUILT) $(BUILT_CUDA)
	$(PYTEST) -m "not full"
	TRITON_INTERPRET=1 $(PYTEST) -m "not full" tests/interpreted

test-full: $(BUILT) $(BUILT_CUDA)
	$(PYTEST)
	TRITON_INTERPRET=1 $(PYTEST) tests/interpreted

# The tests that reach most of the compiled code, on a build of it with address and undefined-behaviour sanitizers.
test-sanitize: export PATH := $(abspath $(dir $(PYTHON))):$(PATH)
test-sanitize: $(READY)
	cmake -S . -B build/sanitize -G Ninja -DPython_EXECUTABLE=$(abspath $(PYTHON)) -DCNNKERN_SANITIZE=address,undefined
	cmake --build build/sanitize
	$(PYTHON) setup.py --quiet build_py --build-lib $(SANITIZED)
	cmake --install build/sanitize --prefix $(SANITIZED)
	cd $(SANITIZED) && ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$(foreach library,asan ubsan stdc++,$(shell g++ -print-file-name=lib$(library).so))" \
	$(abspath $(PYTHON)) -m pytest -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) \
	  $(addprefix $(CURDIR)/,$(wildcard tests/test_ops_cpu.py tests/test_kernels*.py)) -m "not full"

build: $(READY)
	$(PYTHON) setup.py build_ext --inplace

lint: $(READY)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(dir $(PYTHON))clang-format --dry-run --Werror $(filter %.cpp %.cu %.h, $(SOURCES)) $(wildcard tests/cpp/*.cpp tests/cpp/*.h $(addprefix tests/simt/,*.cpp *.h */*.h))

# The table of csrc/cuda/README.md.
resources: $(BUILT_CUDA)
	$(PYTHON) -m cnnkern.bench.resources csrc/cuda/README.md

check-spills: $(BUILT)
	$(PYTEST) tests/test_disassembly.py

clean:
	rm -rf .venv build dist *.egg-info cnnkern/*.so

.venv/ready: constraints.txt pyproject.toml
	python3 -m venv .venv
	.venv/bin/python -m pip install $(shell grep ^torch== constraints.txt)
	.venv/bin/python -m pip install -c constraints.txt setuptools wheel pybind11 cmake ninja
	.venv/bin/python -m pip install -c constraints.txt --no-build-isolation -e ".[test,lint]"
	touch $@

$(BUILT): $(READY) $(SOURCES)
	$(PYTHON) setup.py build_ext --inplace
	touch $@

# The CUDA kernels too, where there is a compiler for them: the tests look at what it made of them.
$(BUILT_CUDA): $(BUILT)
	$(if $(shell command -v nvcc),CNNKERN_CUDA=1 CNNKERN_CUDA_ARCHS="80;90a" $(PYTHON) setup.py build_ext --inplace)
	touch $@
