# Everything runs in .venv; `make demo` and `make test` bring what they need. ARGS is passed on, as in make test ARGS="-k ledger".
PYTHON ?= python3
BIN := .venv/bin
PAGES := reproduce-splitwise reproduce-polca reproduce-row reproduce-plans reproduce-maxlps
.PHONY: setup controlplane e2e e2e-soak e2e-tools demo faults test test-again test-demo test-papers property-long lint bench bench-sim bench-memory reproduce $(PAGES) house generate images image-base

setup: .venv/.stamp

.venv/.stamp: pyproject.toml papers/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv && $(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]' -e ./papers
	$(BIN)/python -m splitwatt_lab.prometheus
	touch $@

controlplane: setup
	@$(BIN)/python -m splitwatt_lab.toolbuild

demo: controlplane
	$(BIN)/splitwatt demo $(ARGS)

# Every fault of docs/safety.md on real processes, alone and in pairs: a quarter of an hour, alone on the machine. ARGS="--only NAMES --seed N".
faults: controlplane
	$(BIN)/splitwatt faults $(ARGS)

test: controlplane
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --cov --cov-report= --ignore=tests/papers --ignore=tests/demo $(ARGS)
	$(BIN)/coverage report --skip-covered --include='core/*' --fail-under=95

# What failed in the last `make test`, one at a time.
test-again: controlplane
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none --ignore=tests/papers --ignore=tests/demo $(ARGS)
	$(BIN)/coverage report --skip-covered --include='core/*' --fail-under=95

# The demo as a user plays it, alone on the machine.
test-demo: controlplane
	$(BIN)/python -m pytest tests/demo $(ARGS)

# A million transitions in which objects and agents vanish; the table and out/property.json say what happened. ARGS="--seed N" plays one.
property-long: setup
	PYTHONPATH=tests $(BIN)/python -m support.long_walk $(ARGS)

# Installed on real kubelets, with simulated GPUs: E2E=kind, node or the path of a kubeconfig. Root on Debian or Ubuntu; about a
# quarter of an hour, and as much again the first time. ARGS="-k restart" for some scenarios.
E2E ?= kind
e2e: controlplane
	PYTHONPATH=e2e $(BIN)/python -m ground.run --on $(E2E) $(ARGS)

# Half an hour of churn on the same ground; SOAK_MINUTES says otherwise.
e2e-soak: controlplane
	PYTHONPATH=e2e $(BIN)/python -m ground.run --on $(E2E) $(ARGS) e2e/soak.py

e2e-tools: setup
	@PYTHONPATH=e2e $(BIN)/python -m ground.tools

# What only reproduces published results; no other room stands on it.
test-papers: setup
	$(BIN)/python -m pytest -n 3 --dist loadfile tests/papers $(ARGS)

lint: setup
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/lint-imports
	$(BIN)/mypy && $(BIN)/mypy --config-file tests/mypy.toml && $(BIN)/python docs/house.py --check
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/release/test_lengths.py

bench: controlplane
	$(BIN)/splitwatt bench $(ARGS)

bench-sim: setup
	$(BIN)/python -m splitwatt_papers.bench $(ARGS)

bench-memory: setup
	$(BIN)/python -m splitwatt_memory.bench $(ARGS)

# The pages below docs/reproduce. SPLITWATT_DATA names the folder of the public traces; without it a generator stands in.
export SPLITWATT_DATA ?= $(wildcard ../shared/data)
reproduce: $(PAGES)
$(PAGES): reproduce-%: setup
	$(BIN)/python -m splitwatt_papers.pages.$* $(ARGS)

# The pictures and the table of rooms in docs/architecture.md.
house: setup
	$(BIN)/python docs/house.py $(ARGS)

generate: setup
	$(BIN)/python -m splitwatt_api.generate
	$(BIN)/python -m splitwatt_panels.generate

# ENGINE=docker|podman|buildah, REGISTRY=registry.example.com/team, BASE=, BUILD_BASE=, IMAGE_ARGS=; ARGS="--own-base --check --report".
images: setup
	$(BIN)/python -m splitwatt_lab.images $(ARGS)

# Both bases of Debian's packages, for a machine that reaches no registry; prints what to give to make images.
image-base: setup
	$(BIN)/python -m splitwatt_lab.images --only-base $(ARGS)
