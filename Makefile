# Every target works on a fresh machine: it creates .venv, installs the project into it, and does its job.
#   make test ARGS="-k grid"          extra arguments for the tool that the target runs
#   make install PYTHON=python3.12    the interpreter to build .venv with (3.11 to 3.13)

BIN := .venv/bin
STAMP := .venv/.installed
ARGS ?=

# One thread per process: small FFTs and convolutions then run at a steadier speed. pytest runs one process per core, and
# one more for the slow tests, because many of them wait for other processes.
TEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest

# PyTorch wheels have up to a gigabyte; uv's own timeout, 30 s, is too short behind a proxy that checks them.
export UV_HTTP_TIMEOUT ?= 300

.DEFAULT_GOAL := help
.PHONY: help install update demo test test-slow test-oldest docs site experiments lint format types check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv and install the project with its development tools

# A shim that exists but does not run (pyenv) and a Python without venv (bare Debian) are both skipped.
$(STAMP): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
	    for python in $(or $(PYTHON),python3 python3.11 python3.12 python3.13); do \
	        "$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	            2>/dev/null && found="$$python" && break; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "make: no Python 3.11 to 3.13 with the venv module was found. Install one (Debian: apt-get install python3 python3-venv)," >&2; \
	        echo "      or name it: make $(firstword $(MAKECMDGOALS) install) PYTHON=/path/to/python3.12" >&2; \
	        exit 1; \
	    fi; \
	    echo "creating .venv with $$found ($$("$$found" -V))"; \
	    "$$found" -m venv .venv; \
	fi
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(BIN)/python -m ensurepip
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt pip uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[dev]"
	@touch $@

update: $(STAMP)  ## write the newest versions into constraints.txt, and raise the upper bounds of torch in pyproject.toml
	$(BIN)/python .ci/update

demo: $(STAMP)  ## train two small models, with white and power-law noise, and write their samples to runs/demo
	$(BIN)/multisagd demo $(ARGS)

test: $(STAMP)  ## the fast tests
	$(TEST) -n 2 -m "not slow" $(ARGS)

test-slow: $(STAMP)  ## the tests that take minutes
	$(TEST) -n 3 --dist worksteal -m slow $(ARGS)

# Tests the lower bounds in pyproject.toml: the lowest versions of the direct dependencies, in a separate environment.
test-oldest: $(STAMP)  ## the fast tests with the oldest allowed versions (installs another 5 GB into .venv-oldest)
	$(BIN)/uv venv --quiet --clear --seed --python $(BIN)/python .venv-oldest
	$(BIN)/uv pip install --quiet --python .venv-oldest --resolution lowest-direct --editable ".[dev]"
	$(subst $(BIN),.venv-oldest/bin,$(TEST)) -n 2 -m "not slow" $(ARGS)

docs: $(STAMP)  ## test the links, images and code blocks of README and docs (minutes)
	$(TEST) -n 2 tests/test_docs.py $(ARGS)

site: $(STAMP)  ## build the documentation site in site/
	$(BIN)/mkdocs build --strict $(ARGS)

# Folder in which the first command stores the run with white noise on MNIST; a test checks that it is right.
WHITE := runs/experiments/seed_0_1f6d6d15
# Each command measures what has no row yet, and continues what was interrupted; ARGS="--workers 2" trains two runs at a
# time. MULTISAGD_DATA is the folder of the data.
experiments: $(STAMP)  ## train whatever is missing on the results page (hours on a CPU), and write the page
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.experiments $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.peers.speed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.inverse_problems --run $(WHITE)
	$(BIN)/python -m benchmarks.experiments.page

lint: $(STAMP)  ## ruff: check rules and format without changes
	$(BIN)/ruff check $(ARGS)
	$(BIN)/ruff format --check $(ARGS)

format: $(STAMP)  ## ruff: fix what can be fixed, and format
	$(BIN)/ruff check --fix $(ARGS)
	$(BIN)/ruff format $(ARGS)

types: $(STAMP)  ## mypy on the packages and the benchmarks
	$(BIN)/mypy $(ARGS)
	$(BIN)/mypy benchmarks $(ARGS)

check: lint types test  ## lint, types and fast tests: run it before a commit

clean:  ## remove caches and build leftovers; the environments and runs/ stay
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
