PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: train parity faults mistakes lessons bench costs docs examples test lint crash accelerator accelerator-rehearsal

train: $(INSTALLED)
	$(BIN)/python -m fmnist_jax.train

parity: $(INSTALLED)
	$(BIN)/python -m parity

faults: $(INSTALLED)
	$(BIN)/python -m tests.tools.faults --document docs/faults.md
	$(BIN)/python -m tests.tools.faults --right --seeds 30

mistakes: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.tools.mistakes planted
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.tools.mistakes pairs 200
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.tools.mistakes right 20

lessons: $(INSTALLED)
	$(BIN)/python -m fmnist_jax.lessons --output runs/lessons --overwrite

docs: $(INSTALLED)
	$(BIN)/python -m parity mistakes --markdown > docs/mistakes.md
	$(BIN)/python -m tests.tools.documents

# In an environment of its own, for the Flax classes are in the last releases of transformers 4 only.
examples:
	$(PYTHON) -m venv .venv-examples
	.venv-examples/bin/pip install --quiet --editable '.[examples]'
	OMP_NUM_THREADS=1 .venv-examples/bin/python -m tests.tools.examples

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks
	$(BIN)/pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks.peers

costs: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.tools.judging

# In the environment at hand: it needs jax, flax, optax, chex, torch, numpy, scipy, matplotlib, rich, psutil, safetensors, pytest.
accelerator:
	$(PYTHON) -m benchmarks.accelerator

accelerator-rehearsal:
	$(PYTHON) -m benchmarks.accelerator --rehearsal --limit 600

# One thread each: processes that wait for each other's threads take many times as long.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

crash: $(INSTALLED)
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.tools.crash --kills 200

lint: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

# A stamp rather than the folder itself: an install that broke off is taken up again.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@
