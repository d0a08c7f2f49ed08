# Each verb works on a fresh machine by itself: it makes .venv, installs the project into it, and does its one job.
#   make test ARGS="-k grid"          extra arguments for the tool behind the verb
#   make install PYTHON=python3.12    the interpreter to build .venv with (3.11 to 3.13)

BIN := .venv/bin
STAMP := .venv/.installed
ARGS ?=

# One thread a process: small FFTs and convolutions run steadier so. pytest runs one process a core, and one more for the
# slow tests, many of which wait for processes of their own.
TEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest

# Wheels of PyTorch have up to a gigabyte; 30 s without an answer, uv's own limit, is little behind a proxy that checks them.
export UV_HTTP_TIMEOUT ?= 300

.DEFAULT_GOAL := help
.PHONY: help install update demo test test-slow test-oldest docs site experiments lint format types check clean

help:  ## list these verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv and install the project with its development tools

# A shim that exists but does not run (pyenv) and a Python without venv (bare Debian) are both passed over.
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

update: $(STAMP)  ## newest versions into constraints.txt, and the caps of torch in pyproject.toml raised to them
	$(BIN)/python .ci/update

demo: $(STAMP)  ## train two small models, white and power-law noise, and show them under runs/demo
	$(BIN)/multisagd demo $(ARGS)

test: $(STAMP)  ## the fast tests
	$(TEST) -n 2 -m "not slow" $(ARGS)

test-slow: $(STAMP)  ## the tests that take minutes
	$(TEST) -n 3 --dist worksteal -m slow $(ARGS)

# What pyproject.toml promises at its lower end: the lowest versions of the direct dependencies, in an environment of their own.
test-oldest: $(STAMP)  ## the fast tests with the oldest versions that are allowed (installs another 5 GB into .venv-oldest)
	$(BIN)/uv venv --quiet --clear --seed --python $(BIN)/python .venv-oldest
	$(BIN)/uv pip install --quiet --python .venv-oldest --resolution lowest-direct --editable ".[dev]"
	$(subst $(BIN),.venv-oldest/bin,$(TEST)) -n 2 -m "not slow" $(ARGS)

docs: $(STAMP)  ## the links, images and blocks of README and docs, each run or with its reason why not (minutes)
	$(TEST) -n 2 tests/test_docs.py tests/test_site.py $(ARGS)

site: $(STAMP)  ## the documentation as a site, in site/
	$(BIN)/mkdocs build --strict $(ARGS)

# Where the first of these leaves the training of white noise on MNIST; a test holds it against the arguments.
WHITE := runs/experiments/seed_0_57616b65
# Each part makes what has no row yet, and goes on with what was interrupted. MULTISAGD_DATA names the folder of the data.
experiments: $(STAMP)  ## train whatever the results page misses (hours on a CPU), and write the page
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.experiments $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.peers
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.inverse_problems --run $(WHITE)
	$(BIN)/python -m benchmarks.experiments.page

lint: $(STAMP)  ## ruff: rules and format, changing nothing
	$(BIN)/ruff check $(ARGS)
	$(BIN)/ruff format --check $(ARGS)

format: $(STAMP)  ## ruff: mend what can be mended, and format
	$(BIN)/ruff check --fix $(ARGS)
	$(BIN)/ruff format $(ARGS)

types: $(STAMP)  ## mypy over the packages and the benchmarks
	$(BIN)/mypy $(ARGS)
	$(BIN)/mypy benchmarks $(ARGS)

check: lint types test  ## lint, types and fast tests: run it before a commit

clean:  ## remove caches and build leftovers; the environments and runs/ stay
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
