# One entry for everything: `make demo` and `make test` set up all that they need
# inside this folder (.venv and build/) and do it only once.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

# Whatever environment is active outside stays outside.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX
unexport PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV PIP_CONSTRAINT

# All paths are relative, so that the clone may lie in a folder with spaces in its name.
PY := .venv/bin/python
STAMPS := .venv/stamps
WORKERS ?= auto
# -qq: errors only, but those in full.
INSTALL := $(PY) -m pip --disable-pip-version-check install -qq -c constraints.txt

KERNEL_SOURCES := $(wildcard CMakeLists.txt cmake/* csrc/*)
CPP := $(wildcard csrc/*.cpp csrc/*.h csrc/*.hpp)
STEP := @printf '\033[1m==> %s\033[0m\n'

# Build tools and the packages for development, as pyproject.toml names them.
define LIST_REQUIREMENTS
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))
extras = project["project"]["optional-dependencies"]
wanted = project["build-system"]["requires"] + ["cmake", "ninja"]
wanted += project["project"]["dependencies"] + [w for extra in extras.values() for w in extra]
print("\n".join(w for w in wanted if not w.startswith("sparsewright")))
endef
export LIST_REQUIREMENTS

# Without AVX-512 in this CPU its kernels are sanitized as SIMDe emulates them (libsimde-dev).
SANITIZED := build/sanitize
EMULATE := $(if $(wildcard /usr/include/simde/x86/avx512.h),$(shell grep -q avx512dq /proc/cpuinfo || echo ON))
CHECKED := $(addprefix tests/test_,$(addsuffix .py,kernels bound chain chain_batches transposed own_tiles into kernels_anywhere layouts layout_linear threads kernel_threads packed_kernels moving conv depthwise pooling beside waves code fuzz))

.PHONY: help setup demo test lint types pytest sanitize fuzz bench format clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

demo: setup  ## train, deploy and measure a sparse network on real data; writes a report
	@$(PY) -m sparsewright demo

test: setup lint types pytest  ## run every check and every test

setup: $(STAMPS)/kernels  ## make .venv with all dependencies and compile the kernels

lint: setup
	$(STEP) "ruff: rules and format of the Python code"
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --check --quiet . || { echo "run 'make format'"; exit 1; }
	$(STEP) "clang-format: format of the C++ code"
	@.venv/bin/clang-format --dry-run --Werror $(CPP) || { echo "run 'make format'"; exit 1; }

types: setup
	$(STEP) "mypy: types of the package"
	@$(PY) -m mypy --no-error-summary

# A process for each core. Threads of several processes share the cores: they must not wait busily.
pytest: setup
	$(STEP) "pytest: all tests and the examples in docstrings, and which lines they reach"
	@OMP_WAIT_POLICY=passive $(PY) -m pytest -q -rs -n $(WORKERS) --dist loadgroup \
	  --cov --cov-report=term:skip-covered $(ARGS)

# Python itself is not sanitized, so the runtime is loaded before it; libstdc++ too, or it would
# not find what throws. Python leaks by design. Needs GCC; pytest stops at the first finding.
sanitize: setup  ## run the kernels' tests under AddressSanitizer and UBSan
	$(STEP) "compiling the kernels with sanitizers into $(SANITIZED)$(if $(EMULATE),: AVX-512 emulated)"
	@.venv/bin/cmake -S . -B $(SANITIZED) -G Ninja -DCMAKE_MAKE_PROGRAM="$(CURDIR)/.venv/bin/ninja" \
	  -DPython_EXECUTABLE="$(CURDIR)/$(PY)" -DCMAKE_CXX_COMPILER=$(CXX) \
	  -DSPARSEWRIGHT_SANITIZE=ON -DSPARSEWRIGHT_EMULATE_AVX512=$(or $(EMULATE),OFF) > /dev/null
	@.venv/bin/cmake --build $(SANITIZED) -- --quiet
	$(STEP) "pytest: kernels, layouts, packed layers, threads and damaged artifacts, under the sanitizers"
	@LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  SPARSEWRIGHT_LIBRARY="$(CURDIR)/$(SANITIZED)/csrc/sparsewright_kernels.so" \
	  $(PY) -m pytest -q -p no:cacheprovider --capture=sys $(CHECKED) $(ARGS)

fuzz: setup  ## load random damaged and forged artifacts for a minute (ARGS="--seconds 600 --seed 1")
	@$(PY) tests/fuzz_artifact.py $(ARGS)

bench: setup  ## measure layers, patterns, models against every peer; ARGS="--threads 1" narrows it
	$(STEP) "sparsewright bench layer"
	@$(PY) -m sparsewright bench layer --batch 1 64 --out build/bench $(ARGS)
	$(STEP) "sparsewright bench layer --pattern"
	@$(PY) -m sparsewright bench layer --shape 768x3072 128x128x3@28 --batch 1 64 \
	  --pattern 2:4 16:32 3:32 fan_in block:4x1 block:16x1 block:4x4 --only linear "batch 1" \
	  --out build/bench/patterns $(ARGS)
	$(STEP) "sparsewright bench model"
	@$(PY) -m sparsewright bench model --batch 1 --out build/bench $(ARGS)

format: setup  ## put the Python and C++ code into the project's format
	@$(PY) -m ruff check --fix --quiet .
	@$(PY) -m ruff format --quiet .
	@.venv/bin/clang-format -i $(CPP)

clean:  ## remove .venv, build/ and all caches; runs/ stays
	@rm -rf .venv build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# --- set-up, in order; a step that fails leaves no stamp and is done again next time ---

$(STAMPS)/venv:
	$(STEP) "making .venv (needs Python 3.11 or later; PYTHON=... chooses one)"
	@for python in $${PYTHON:-python3 python3.13 python3.12 python3.11}; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    "$$python" -m venv .venv; mkdir -p $(STAMPS); touch $@; exit 0; \
	  fi; \
	done; \
	echo "error: no Python 3.11 or later was found; tried: $${PYTHON:-python3 python3.13 python3.12 python3.11}" >&2; exit 1

$(STAMPS)/torch: $(STAMPS)/venv constraints.txt
	$(STEP) "installing torch (a large download the first time)"
	@$(INSTALL) torch
	@touch $@

$(STAMPS)/packages: $(STAMPS)/torch pyproject.toml constraints.txt
	$(STEP) "installing build tools and the packages for development"
	@$(PY) -c "$$LIST_REQUIREMENTS" > $(STAMPS)/requirements.txt
	@$(INSTALL) -r $(STAMPS)/requirements.txt
	@touch $@

$(STAMPS)/kernels: $(STAMPS)/packages $(KERNEL_SOURCES)
	$(STEP) "compiling the kernels and installing sparsewright (editable)"
	@$(INSTALL) --no-build-isolation --no-deps -e .
	@touch $@
