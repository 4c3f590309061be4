# Each target does all its own set-up on a fresh machine: python3 (3.11 or later) with venv is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev

.PHONY: demo test check examples bench simulate chaos capacity failpoints mutants shares constraints clean

demo: $(READY)
	$(BIN)/imx demo

# Real servers, processes and deadlines on a machine that others use too: what failed is run once more, alone, and said.
# Much of the time is waiting for leases and processes: four at once also where there are two cores.
# A file that cannot be collected is no failure that could be run again: it ends the command at once.
test: check
	$(BIN)/python -m pytest --collect-only -q > /dev/null
	$(BIN)/python -m pytest -n 4 --dist loadgroup --ignore tests/failpoints || \
	  $(BIN)/python -m pytest --last-failed --last-failed-no-failures none -p no:xdist --ignore tests/failpoints

# A process is killed before and after every message it sends: two minutes that want the machine for themselves.
failpoints: $(READY_DEV)
	$(BIN)/python -m pytest tests/failpoints

check: $(READY_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

examples: $(READY_DEV)
	$(BIN)/python examples/run_all.py

# One seed is one run of the production's processes on a simulated clock, network and server.
SEEDS ?= 2000
simulate: $(READY_DEV)
	$(BIN)/python -m tests.simulation --seeds $(SEEDS)

# A whole system of real processes is broken by chance for some minutes, and checked at its end; with one server or three.
MINUTES ?= 3
REPLICAS ?= 1
chaos: $(READY_DEV)
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) --replicas $(REPLICAS)

# 10,000 executions with work under way after a cold start, and 100,000 that sleep: seconds and memory, against the goals.
capacity: $(READY_DEV)
	$(BIN)/python -m tests.capacity

# What CI runs beside the tests: thousands of simulated runs, a kill at each message, and some minutes of chaos.
shares: $(READY_DEV)
	$(BIN)/python -m tests.simulation --seeds $(SEEDS)
	$(BIN)/python -m pytest tests/failpoints
	$(BIN)/python -m tests.chaos --minutes 3 --ci

# Each rule of the protocol taken out alone, and the test that finds it.
mutants: $(READY_DEV)
	$(BIN)/python -m tests.mutants

bench: $(READY_DEV)
	$(BIN)/python -m bench

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[fast]'
	touch $@

$(READY_DEV): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev]'
	touch $(READY) $@

# The newest versions that pyproject.toml admits, for constraints.txt; run the tests before it is committed.
constraints:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	sed -i '/^[^#]/d' constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable >> constraints.txt

clean:
	rm -rf $(VENV) .bench dist
