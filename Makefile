# Every target does its own set-up: a virtual environment in .venv, made once and again when pyproject.toml changes.
# PYTHON=python3.12 picks another interpreter; ARGS="..." is passed on to the command.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check format bench docs clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(READY) ## Make the virtual environment

demo: $(READY) ## Read a long text with and without methods, and compare the answers
	$(BIN)/longspan demo $(ARGS)

test: $(READY) ## Run the tests
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" $(ARGS)

test-slow: $(READY) ## Run the slow tests
	$(BIN)/python -m pytest -m slow $(ARGS)

check: $(READY) ## Lint, format check, types and tests: what CI runs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" $(ARGS)

format: $(READY) ## Format the code and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## Run the benchmark
	$(BIN)/longspan bench $(ARGS)

docs: $(READY) ## Generate the pages of the methods
	$(BIN)/longspan methods --docs docs/methods --pairs docs/pairs.md $(ARGS)

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "longspan needs Python 3.11 or newer; name one with PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[bench,dev]"
	@touch $@
