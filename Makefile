# The two commands that matter: `make sweep` and `make test`. Each sets up what it needs first.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
SWEEP ?= quickstart
RESULTS ?= results
# Published curves to overlay: a folder, `none`, or those that `tdmpc2 reference import` put where they are looked for.
REFERENCE ?= $(wildcard $(RESULTS)/reference/curves)
RUN ?=
# A Ray cluster to run on (docs/cluster.md), and where results go if its machines share no disk (docs/storage.md).
ADDRESS ?=
STORAGE ?=
ARGS ?=

# The report of the sweeps named, or, with SWEEP= and a REFERENCE, of the published curves alone.
# A sweep may be given as the path of its YAML file; its results lie under the file's name.
SWEEPS = $(patsubst %.yml,%,$(patsubst %.yaml,%,$(notdir $(SWEEP))))
CURVES = $(filter-out none,$(REFERENCE))
REPORT = $(if $(CURVES),echo "published curves: $(CURVES) (REFERENCE=none leaves them out)" >&2;) \
	$(BIN)/python -m analysis.report $(addprefix $(RESULTS)/,$(SWEEPS)) $(if $(CURVES),--reference $(CURVES))
PLACE = $(if $(ADDRESS),--address $(ADDRESS)) $(if $(STORAGE),--storage $(STORAGE))

.DEFAULT_GOAL := help
.PHONY: help setup setup-maniskill sweep plan status report lab test test-slow test-faults lint bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  SWEEP=name picks the sweep (default: quickstart; see scripts/sweeps/), ARGS='...' adds options."
	@echo "  Reports overlay the published curves in REFERENCE=folder (default: $(RESULTS)/reference/curves where it exists;"
	@echo "  none: no curves); RUN=name picks the run that the page on one run shows."

setup: $(VENV)/.installed ## Create the virtual environment and install everything

$(VENV)/.installed: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11, or name it by PYTHON=..."; exit 2; }
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# ManiSkill2 needs NumPy 1, so it has an environment of its own, which the main one steps in worker processes.
setup-maniskill: setup ## Install ManiSkill2 beside it, in an environment of its own
	@test -d $(VENV)-maniskill || $(PYTHON) -m venv $(VENV)-maniskill
	@echo "installing into $(VENV)-maniskill (a few minutes) ..."
	@$(VENV)-maniskill/bin/python -m pip install --quiet --disable-pip-version-check -r scripts/maniskill-requirements.txt
	@$(VENV)-maniskill/bin/python -m pip install --quiet --disable-pip-version-check --no-deps mani_skill2==0.5.3
	@$(BIN)/tdmpc2 tasks maniskill --check

sweep: setup ## Run a sweep to its report (resumes where it stopped)
	@failed=0; $(BIN)/tdmpc2 sweep run $(SWEEP) --results $(RESULTS) $(PLACE) $(ARGS) || failed=$$?; \
	if [ $$failed -le 1 ]; then \
	  $(REPORT) || exit $$?; \
	fi; exit $$failed

plan: setup ## Show a sweep's runs and their cost
	@$(BIN)/tdmpc2 sweep plan $(SWEEP) --results $(RESULTS)

status: setup ## Show how far a sweep is
	@$(BIN)/tdmpc2 sweep status $(SWEEP) --results $(RESULTS)

report: setup ## Make the report of sweeps (SWEEP="a b"); SWEEP= REFERENCE=folder: of published curves alone
	@$(REPORT) $(if $(RUN),--run $(RUN)) $(ARGS)

lab: setup ## Open JupyterLab on copies of the report's notebooks
	@$(BIN)/tdmpc2 lab --results $(RESULTS) $(ARGS)

test: setup ## Run the tests
	@$(BIN)/python -m pytest -n auto $(ARGS)

test-slow: setup ## Run the slow tests too (learning, large models)
	@$(BIN)/python -m pytest -m '' $(ARGS)

test-faults: setup ## Injure a small sweep 100 times, and hold what comes out against an undisturbed one
	@$(BIN)/python scripts/faults.py $(ARGS)

lint: setup ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: setup ## Measure speed: a table here, a record in results/bench/
	@$(BIN)/python scripts/benchmark.py $(ARGS)

clean: ## Remove the virtual environment and caches (results stay)
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
