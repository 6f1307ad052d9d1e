PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Made anew when what is to be installed changes.
STAMP := $(VENV)/installed
STACK ?= local

.DEFAULT_GOAL := help
# Several workers, what shares a stack on one of them: tests/README.md.
PYTEST := $(BIN)/python -m pytest
WORKERS := -n auto --no-loadscope-reorder
# `make test T=path::name`
T ?=

.PHONY: help up fast test test-all test-vllm lint check bench

help: ## Show these lines
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

up: $(STAMP) ## Install what is needed and run stacks/Pulumi.local.yaml here (STACK=name: another)
	$(BIN)/splitstack up -s $(STACK)

fast: $(STAMP) ## Run the tests that need no network, no Go and no real model: three minutes
	$(PYTEST) $(WORKERS) -m fast

test: $(STAMP) ## Install what is needed and run the tests (T=path::name: one, without the rest)
ifeq ($(T),)
	$(BIN)/python -m tests.programs
	$(PYTEST) $(WORKERS) -m 'not long'
else
	$(PYTEST) --bring-programs $(T)
endif

test-all: $(STAMP) ## Run every test: each architecture with each number of ranks, long fuzzing
	$(BIN)/python -m tests.programs
	SPLITSTACK_FUZZ=10 $(PYTEST) $(WORKERS) -m 'not vllm'
	$(MAKE) test-vllm

test-vllm: $(STAMP) ## Run the tests of platform vllm with the real engine, which it installs (6 GB, once)
	$(PYTEST) -m vllm tests/e2e/test_vllm.py

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test ## Lint, format, types, then the tests

bench: $(STAMP) ## Measure against transformers, side by side; JSON on standard output
	$(BIN)/python -m benchmarks.serving

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
