# Burnish. The two that matter: `make demo` and `make test`. Each does all of its own set-up.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CACHE ?= .cache
DEMO_ARGS ?=
# Where a CPU build of torch is looked for when this machine has no NVIDIA driver. Empty: the default index alone.
export TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: help setup demo test test-full check format docs clean

help:  ## What there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready  ## The environment, with everything for training, serving and the tests

$(VENV)/.ready: pyproject.toml constraints.txt tools/setup_environment.py
	@$(PYTHON) tools/setup_environment.py --venv $(VENV)
	@touch $@

demo: setup  ## The whole life of one model on this machine; DEMO_ARGS=--exit ends it after the report
	@model="$$($(BIN)/python tools/fetch_model.py --cache $(CACHE))" && exec $(BIN)/burnish demo --model "$$model" $(DEMO_ARGS)

test: setup  ## Every suite in its short form
	@$(BIN)/python tools/fetch_model.py --cache $(CACHE) >/dev/null
	@$(BIN)/python tools/run_tests.py

test-full: setup  ## The same suites with whole matrices and repetitions
	@$(BIN)/python tools/fetch_model.py --cache $(CACHE) >/dev/null
	@$(BIN)/python tools/run_tests.py --full

check: setup  ## Formatting, lint, types, import contracts
	$(BIN)/ruff format --check src tests tools benchmarks docs examples
	$(BIN)/ruff check src tests tools benchmarks docs examples
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## Format and fix what can be fixed
	$(BIN)/ruff format src tests tools benchmarks docs examples
	$(BIN)/ruff check --fix src tests tools benchmarks docs examples

docs: setup  ## Build the documentation, which the server then has at /docs
	$(BIN)/mkdocs build --strict

clean:  ## Remove what was made here, except ~/.burnish
	rm -rf $(VENV) $(CACHE) src/burnish/platform/documentation/site build dist .mypy_cache .ruff_cache .pytest_cache .coverage*
