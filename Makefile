# make demo and make test are all that a newcomer needs; both set up .venv first (quick the second time).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# one of the demonstration's models, that draws a digit and completes the data it was trained on
ONE := runs/demo/007-fraction0.2-k1-label50
# a process of one thread for each core
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 8

.PHONY: setup demo test slow cluster-test chaos lint format bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/pairstream prepare digits
	$(BIN)/pairstream inspect data/digits --view split --fraction 0.05
	rm -rf runs/demo
	$(BIN)/pairstream sweep digits --out runs/demo
	$(BIN)/pairstream generate $(ONE) --given label=3 --out runs/demo/threes
	$(BIN)/pairstream impute $(ONE) --data data/digits --pairing.view split --pairing.fraction 0.2 --out runs/demo/completed
	@echo "(. .venv/bin/activate first, so that the shell finds pairstream and mlflow)"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(PYTEST) --dist loadfile  # tests of a file share what is costly

# these wait more than they compute: one process more than cores
slow: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $$($(BIN)/python -c 'import os; print(min(os.cpu_count(), 8) + 1)') \
		--dist worksteal -m slow --durations 20

# SLURM (installed where this user may), Ray's clusters and its job server, two network namespaces
cluster-test: setup
	command -v slurmctld > /dev/null || apt-get install --yes slurm-wlm munge iproute2 || sudo apt-get install --yes slurm-wlm munge iproute2
	$(BIN)/pytest -m cluster

# a hundred kills -9 of two ranks that train, and of two that complete data
chaos: setup
	PAIRSTREAM_KILLS=100 $(BIN)/pytest -m slow tests/promises/test_ranks_promise.py tests/jobs/test_impute.py

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/pairstream bench step --json

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
