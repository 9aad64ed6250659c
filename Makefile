# Two commands: `make demo` imagines a robot, `make test` checks everything. Both make .venv first, once.
# CPU-only laptop: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
TORCH_INDEX ?=
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# The first Python that runs and is 3.11 or later; 3.11 is preferred, since pybullet has no wheels for later ones.
FIND_PYTHON = for p in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$p; exit 0; fi; done; \
	echo "No Python of 3.11 or later found. Install one, or say where it is: make PYTHON=/path/to/python3.11" >&2; exit 1

.PHONY: help demo test lint format types pytest install dev clean

help:
	@echo "make demo     install into $(VENV) and write out/demo.mp4"
	@echo "make test     ruff, mypy --strict, pytest"
	@echo "make format   put the code into shape"
	@echo "make clean    remove $(VENV), caches and out/"

demo: $(VENV)/.installed
	$(BIN)/python -m vap_gym demo

test: lint types pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

pytest: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.installed
dev: $(VENV)/.installed-dev

# Re-installed only when what is installed changes: the stamps are older than pyproject.toml or constraints.txt.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[dev]'
	@touch $(VENV)/.installed $@

$(BIN)/python:
	@python=$$($(FIND_PYTHON)) && echo "Making $(VENV) with $$($$python -V)" && \
	{ $$python -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; }  # half an environment would pass for a whole one

clean:
	rm -rf $(VENV) out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
