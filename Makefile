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

.PHONY: help setup demo test lint types pytest bench format clean

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

# The log is kept so that pytest's own last line can close the output.
pytest: setup
	$(STEP) "pytest: all tests and the examples in docstrings"
	@mkdir -p build
	@$(PY) -m coverage run -m pytest -q -rs $(ARGS) 2>&1 | tee build/pytest.log
	$(STEP) "coverage"
	@$(PY) -m coverage report
	@tail -n 1 build/pytest.log

bench: setup  ## measure layers and models against every peer; ARGS="--threads 1" narrows it
	$(STEP) "sparsewright bench layer"
	@$(PY) -m sparsewright bench layer --batch 1 64 --out build/bench $(ARGS)
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
