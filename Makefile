PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: train parity faults test lint

train: $(INSTALLED)
	$(BIN)/python -m fmnist_jax.train

parity: $(INSTALLED)
	$(BIN)/python -m parity

faults: $(INSTALLED)
	$(BIN)/python -m parity faults --document parity/FAULTS.md

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

# A stamp rather than the folder itself: an install that broke off is taken up again.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@
