# make demo and make test do everything on a fresh machine; the rest are parts of them.
.PHONY: setup demo test test-quick up viewer check format lock conda clean
SHELL := /bin/bash
ENV := $(if $(wildcard .conda/bin/python),.conda,.venv)
BIN := $(ENV)/bin
HOME_DIR ?= .voxloop

setup: $(ENV)/.ready

$(ENV)/.ready: requirements.lock pyproject.toml viewer.lock scripts/setup scripts/viewer
	@scripts/setup $(ENV)

demo: setup
	@$(BIN)/voxloop demo --home $(HOME_DIR)

# Without a network the rest works, and says how to get the viewer.
up: setup
	-@$(BIN)/python scripts/viewer $(ENV)
	@$(BIN)/voxloop up --home $(HOME_DIR)

viewer: setup
	@$(BIN)/python scripts/viewer $(ENV)

test: setup
	$(BIN)/pytest

test-quick: setup
	$(BIN)/pytest -m "not slow"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Versions stay as they are where they can; delete a line of requirements.lock to let that package move.
lock: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --override overrides.txt --extra dev --no-header --no-annotate pyproject.toml -o requirements.lock

# Python, Java and Node from conda, the same lock on top; from then on make uses it instead of .venv.
conda:
	conda env create --yes --file conda.yaml --prefix .conda
	@scripts/setup .conda

clean:
	rm -rf .venv .conda
