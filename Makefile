# Two commands on a fresh machine:  make demo   make test
# Variables: PYTHON (3.11 or newer), VENV, PIP_ARGS (for example an index that serves the CPU build of torch).
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
export PYTHONWARNINGS ?=

.PHONY: demo test check bench docs clean
demo: $(VENV)/.demo
	$(BIN)/vidon demo

test: check
	$(BIN)/python -P -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python -P -m pytest -m slow
	for script in benchmarks/[a-z]*.py; do $(BIN)/python -P $$script || exit 1; done

docs: $(VENV)/.dev
	$(BIN)/python -P docs/build.py

clean:
	rm -rf $(VENV) build dist *.egg-info vidon-demo

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "vidon needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch first and pinned: an unpinned torch would bring gigabytes of CUDA libraries to a machine without a GPU.
$(VENV)/.demo: $(VENV)/.python pyproject.toml constraints.txt
	@echo "installing vidon and its libraries into $(VENV) (a few minutes the first time)"
	$(PIP) install $(PIP_ARGS) -c constraints.txt torch==2.13.0
	$(PIP) install $(PIP_ARGS) -c constraints.txt -e '.[all]'
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) install $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@
