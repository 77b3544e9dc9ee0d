PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint check parity clean

demo: .venv/base  ## a tiny policy trained under four credit schemes, in minutes: a table, and page.html in a new folder
	$(BIN)/stepcredit demo

test: .venv/dev  ## every test and every docstring example
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest --numprocesses 2 --quiet

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

parity: .venv-parity/ready  ## our numbers against the advantage functions of an installed verl; its own environment
	OMP_NUM_THREADS=1 .venv-parity/bin/pytest --quiet tests/parity

.venv-parity/ready: pyproject.toml tests/parity/requirements.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/pip install --quiet torch==2.13.0
	.venv-parity/bin/pip install --quiet --requirement tests/parity/requirements.txt
	.venv-parity/bin/pip install --quiet --no-deps verl==0.9.1
	.venv-parity/bin/pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf .venv .venv-parity demo demo-[0-9]* dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
