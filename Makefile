# `make demo` and `make test` work on a fresh checkout: they need git, make and Python 3.11+ with venv. They make
# .venv from the hashes in requirements.lock; a stamp in it makes the next call start at once.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(firstword $(foreach name,python3.13 python3.12 python3.11 python3,$(shell \
	$(name) -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $(name))))
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
RUN_STAMP := $(VENV)/.run-stamp
DEV_STAMP := $(VENV)/.dev-stamp

# The least line coverage of each of actors, cluster and vpmu, in percent.
COV_MIN ?= 90
PYTEST_ARGS ?=
# Tests run in so many processes; 0 for one, in which a debugger can be used.
TEST_JOBS ?= 2
BENCH_ARGS ?=
MUTANT_ARGS ?=
FUZZ_FRAMES ?= 1000000
ATHERIS_RUNS ?= 200000
UV_COMPILE = uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --group build --custom-compile-command 'make lock' $(LOCK_ARGS)
DEMO_SCENARIO ?= examples/ftest/stat.toml
DEMO_DESIGNS ?= legacy,optimized,native

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help environment demo test lint format bench scale workers docs conformance mutants soak chaos container fuzz fuzz-atheris ftest-profile lock clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1 \2/p' $(MAKEFILE_LIST) | awk '{n = $$1; $$1 = ""; printf "%-15s%s\n", n, $$0}'

environment: $(DEV_STAMP) ## Make .venv with all that tests and tools need

demo: $(RUN_STAMP) ## Run perf stat in a guest under both designs and natively; print one table
	$(BIN)/vpmu run $(DEMO_SCENARIO) --design $(DEMO_DESIGNS)

test: $(DEV_STAMP) ## Run the tests with coverage (PYTEST_ARGS, TEST_JOBS, COV_MIN)
	$(BIN)/vpmu compile # while nobody traces: under coverage it would take four times as long
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses $(TEST_JOBS) --dist worksteal $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	@for room in actors cluster vpmu; do \
		$(BIN)/coverage report --include="$$room/*" --fail-under=$(COV_MIN) --format=total >/dev/null \
			|| { echo "line coverage of $$room/ is below $(COV_MIN) %"; exit 1; }; \
	done

lint: $(DEV_STAMP) ## Check style and types: ruff check, ruff format, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV_STAMP) ## Let ruff fix and format what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV_STAMP) ## Measure speed; writes bench.json (BENCH_ARGS)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

scale: $(DEV_STAMP) ## Measure fleets of 100 to 100,000 vCPUs
	$(BIN)/python -m benchmarks.scale

workers: $(DEV_STAMP) ## Measure one worker against two, and what checkpoints cost
	$(BIN)/python -m benchmarks.workers

docs: $(DEV_STAMP) ## Check the documentation: links, and that every key and command is described
	$(BIN)/pytest tests/docs

conformance: $(DEV_STAMP) ## Write docs/conformance.md from the rules and cases of tests/conformance
	$(BIN)/python -m tests.conformance

mutants: $(DEV_STAMP) ## Flip each mask, width, comparison and update of the PMU's kernels; run the conformance suite
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m tests.conformance.mutants $(MUTANT_ARGS)

soak: $(DEV_STAMP) ## The long tests: whole scenarios in message mode, many random scenarios
	VPMU_SOAK=1 $(BIN)/pytest -m soak $(PYTEST_ARGS)

chaos: $(DEV_STAMP) ## Kill, stop, starve and cut off runs at twenty and more moments; compare every byte
	$(BIN)/pytest -m chaos tests/chaos $(PYTEST_ARGS)

container: $(DEV_STAMP) ## Build the image and run a cluster of it (needs root, buildah and debootstrap)
	$(BIN)/pytest -m container tests/container $(PYTEST_ARGS)

fuzz: $(DEV_STAMP) ## Put a million bad frames on a live hub (FUZZ_FRAMES)
	$(BIN)/python -m tests.cluster.fuzz $(FUZZ_FRAMES)

fuzz-atheris: $(DEV_STAMP) ## Fuzz the wire's decoder by coverage (needs the package atheris in .venv)
	$(BIN)/python -m tests.cluster.fuzz_atheris -atheris_runs=$(ATHERIS_RUNS) -max_len=1024 -timeout=20

ftest-profile: ## Record examples/ftest's Callgrind profile anew (needs gcc and valgrind)
	$(MAKE) -C examples/ftest callgrind

lock: ## Resolve the dependencies anew (needs uv); LOCK_ARGS=--upgrade for newer versions
	$(UV_COMPILE) -o requirements.lock
	$(UV_COMPILE) --extra dev -c requirements.lock -o requirements-dev.lock

clean: ## Remove the environment and all that builds, tests and runs leave in the checkout
	rm -rf $(VENV) build dist *.egg-info out bench.json .coverage .coverage.* htmlcov
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv found (Debian: apt-get install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): requirements.lock pyproject.toml | $(BIN)/python
	$(PIP) install --require-hashes --no-deps -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(DEV_STAMP): requirements-dev.lock requirements.lock pyproject.toml | $(BIN)/python
	$(PIP) install --require-hashes --no-deps -r requirements-dev.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $(RUN_STAMP) $@
