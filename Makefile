PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
PIP_VERL := .venv-verl/bin/pip install --quiet --disable-pip-version-check --constraint constraints-verl.txt
# TRL reports usage from a thread. Its look-up of a host reads the environment, and where the trainer sets a variable at
# that moment the process dies (seen once in some hundred runs).
QUIET := HF_HUB_DISABLE_TELEMETRY=1

.PHONY: demo test test-slow lint check clean

demo: .venv/base  ## a tiny policy trained under four credit schemes, in minutes: a table, and page.html in a new folder
	$(QUIET) $(BIN)/stepcredit demo

test: .venv/dev  ## every test and every docstring example
	$(QUIET) OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest --numprocesses 2 --quiet

lint: .venv/dev  ## format, lint, types, floors
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

check: lint test

# torch goes in first and alone: pinned, so that nothing later brings another build of it.
.venv/base: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --editable '.[trl]'
	touch $@

.venv/dev: .venv/base
	$(PIP) --editable '.[dev]'
	touch $@

test-slow: .venv-verl/ready  ## our numbers against verl's, and short runs of its trainer on a CPU; its own environment
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 RAY_AUTH_MODE=disabled RAY_DEDUP_LOGS=0 \
	  .venv-verl/bin/pytest --quiet tests/parity tests/on_verl

.venv-verl/ready: pyproject.toml constraints-verl.txt
	$(PYTHON) -m venv .venv-verl
	$(PIP_VERL) torch
	$(PIP_VERL) --editable '.[data,qa,verl]' hypothesis pytest
	touch $@

clean:
	rm -rf .venv .venv-verl demo demo-[0-9]* dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
