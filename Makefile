# `make demo` and `make test` are the two commands of the README; both make what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: help install demo deploy-demo test lint bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(RUN_STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV_STAMP): $(RUN_STAMP) requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.lock
	@touch $@

install: $(RUN_STAMP) ## virtual environment in .venv with the locked versions

demo: $(RUN_STAMP) ## three generated hospitals train one model with differential privacy
	$(BIN)/fedmed simulate

deploy-demo: $(RUN_STAMP) ## one server and three clients on this machine, over TLS
	$(BIN)/python docs/deploy_demo.py

lint: $(DEV_STAMP) ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint ## lint, types, tests
	$(BIN)/pytest -n auto --dist loadgroup

bench: $(DEV_STAMP) ## every benchmark, quick settings
	@for script in $(filter-out benchmarks/machine.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script --quick || exit 1; done

clean: ## remove the virtual environment, caches and outputs
	rm -rf $(VENV) outputs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
