PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Made anew when what is to be installed changes.
STAMP := $(VENV)/installed
STACK ?= local

.DEFAULT_GOAL := help
.PHONY: help up test lint check bench

help: ## Show these lines
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

up: $(STAMP) ## Install what is needed and run stacks/Pulumi.local.yaml here (STACK=name: another)
	$(BIN)/splitstack up -s $(STACK)

test: $(STAMP) ## Install what is needed and run every test
	$(BIN)/python -m tests.programs
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test ## Lint, format, types, then every test

bench: $(STAMP) ## Measure against transformers, side by side; JSON on standard output
	$(BIN)/python -m benchmarks.serving

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
