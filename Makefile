# Needs Python 3.10 or newer, and make. Everything is installed into .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
LOWEST := .venv-lowest
# The oldest Python that the lowest versions have wheels for, also among those that pyenv installed.
PYTHON_LOWEST ?= $(shell for v in 3.10 3.11; do \
	for p in python$$v $(HOME)/.pyenv/versions/$$v.*/bin/python; do \
	"$$p" -c "" 2>/dev/null && echo "$$p" && exit; done; done)
CODE   := src tests benchmarks examples docs/hooks.py
DEMO   := experiments/demo-$(shell date +%Y%m%d-%H%M%S)

.DEFAULT_GOAL := help
.PHONY: docs help setup demo test test-slow test-lowest setup-lowest gpu-check fuzz check format wheel tables

help:           ## show this
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

setup: $(VENV)/.installed ## make .venv with the library and what its development needs

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit(f"Python 3.10 or newer is needed; $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: setup     ## train backpropagation and DGL on the embedded digits, compare them
	$(BIN)/layerwise train --recipe demo-backprop --runs $(DEMO) --name backprop
	$(BIN)/layerwise train --recipe demo-dgl --runs $(DEMO) --name dgl
	$(BIN)/layerwise compare $(DEMO)/backprop $(DEMO)/dgl --out $(DEMO)

test: setup     ## the tests, offline, in a few minutes
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-slow: setup ## the long tests
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow

gpu-check: setup ## check the library on a CUDA device; writes benchmarks/results/gpu-check-*.json
	$(BIN)/python benchmarks/gpu_check.py --device $(or $(DEVICE),cuda)

# What depends most on the versions of the libraries. Their own warnings do not count. Modules are
# compiled when they are imported, because compiling all of them at the installation takes longer.
test-lowest: setup-lowest ## tests with the lowest versions that are allowed, in a few minutes
	PYTHONDONTWRITEBYTECODE= $(LOWEST)/bin/python -m pytest -q -n 2 -m 'not slow' \
		-o filterwarnings=default \
		tests/package tests/blocks tests/data/test_disk.py tests/contract/test_features.py \
		tests/cli/test_bad_input.py tests/cli/test_help.py

setup-lowest: $(LOWEST)/.installed

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	@test -n "$(PYTHON_LOWEST)" || \
		{ echo "Python 3.10 or 3.11 is needed: make PYTHON_LOWEST=... test-lowest"; exit 1; }
	rm -rf $(LOWEST)
	$(PYTHON_LOWEST) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet --only-binary :all: --no-compile \
		--constraint constraints-lowest.txt --editable '.[hub,timm,transformers,tensorboard,peft,sweep]' \
		pytest pytest-xdist hypothesis
	@touch $@

fuzz: setup     ## random input of every kind for two minutes: make fuzz SECONDS=600 SEED=1
	$(BIN)/python tests/fuzz.py --seconds $(or $(SECONDS),120) --seed $(or $(SEED),0)

check: setup    ## format, lint, import contract, types
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/lint-imports
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

format: setup   ## format the code
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

wheel: setup    ## build the wheel into dist/
	$(BIN)/python -m build --wheel

tables: setup   ## write the cards, results and figures in docs/ and the README
	$(BIN)/python benchmarks/tables.py

docs: setup     ## build the documentation's site into site/, and fail on a warning or a broken link
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
