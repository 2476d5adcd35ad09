# Two commands for a newcomer: `make run` and `make test`. `make help` lists the others.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CODE := app adapters sinks bench tests
CHECKS := $(patsubst %,tests/papers/test_%.py,house pages engineers_pages papers project_files)

.DEFAULT_GOAL := help
.PHONY: help run test test-quick check-code bench bench-quick bench-curves faults simulate sabotage format lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/run-ready ## start everything on this machine; Ctrl-C stops it
	@$(BIN)/python -m app dev

test: check-code ## all checks and tests, on a real TimescaleDB and a real Redis
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --cov

test-quick: check-code ## unit tests, which start no process, and the checks: under a minute
	@$(BIN)/python -m pytest tests/unit $(CHECKS)

check-code: $(VENV)/ready ## format, lint, types
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/mypy $(CODE)

bench: $(VENV)/ready ## the gateway beside floors and peers, against its targets; under ten minutes
	@$(BIN)/python -m bench compare

bench-quick: $(VENV)/ready ## the same, too short to judge; under a minute
	@$(BIN)/python -m bench compare --quick

bench-curves: $(VENV)/ready ## over rate, connections, table size, duplicates, workers; under 45 minutes
	@$(BIN)/python -m bench curves

faults: $(VENV)/ready ## a million callbacks and 360 faults of 60 kinds; under 45 minutes
	@$(BIN)/python -m bench faults

simulate: $(VENV)/ready ## random histories in virtual time until one fails; eight hours, Ctrl-C ends it
	@$(BIN)/python -m tests.simulation --hours 8

sabotage: $(VENV)/ready ## gateways that break the contract on purpose: each must be found; some 13 minutes
	@$(BIN)/python -m bench sabotage

format: $(VENV)/ready ## put the code into its form
	@$(BIN)/ruff format $(CODE)
	@$(BIN)/ruff check --fix $(CODE)

lock: ## resolve the dependencies anew (needs uv)
	@uv pip compile pyproject.toml --output-file requirements.lock $(LOCK)
	@uv pip compile pyproject.toml --extra traces --constraint requirements.lock \
		--output-file requirements-traces.lock $(LOCK)
	@uv pip compile pyproject.toml --all-extras --constraint requirements-traces.lock \
		--output-file requirements-dev.lock $(LOCK)
	@uv pip compile pyproject.toml --extra embedded --constraint requirements-dev.lock \
		--output-file requirements-run.lock $(LOCK)
LOCK := --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
	--no-annotate

clean: ## remove the virtual environment (the events stay in data/)
	@rm -rf $(VENV)

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--no-deps --require-hashes

$(VENV)/run-ready: requirements-run.lock
	@echo "installing what the gateway and its servers need into $(VENV) (once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 …"; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || \
		{ echo "python3-venv is needed: apt-get install python3-venv"; exit 1; }
	@$(INSTALL) --requirement requirements-run.lock
	@touch $@

$(VENV)/ready: requirements-dev.lock $(VENV)/run-ready
	@echo "installing what the tests and the bench need as well (once)"
	@$(INSTALL) --requirement requirements-dev.lock
	@touch $@
