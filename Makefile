# make run    the main job: images in, trained students and Parquet tables out
# make test   the tests
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

.PHONY: run test check check-static format lint types contracts guard bench ablation lock clean

run: .venv/ready
	@$(BIN)/python -m flows.full \
		$(if $(DATASET),--dataset "$(DATASET)") \
		$(if $(WEIGHTS),--weights "$(WEIGHTS)") \
		$(if $(CATEGORIES),--categories "$(CATEGORIES)") \
		$(if $(STORE),--store "$(STORE)") \
		$(if $(CONFIG),--config "$(CONFIG)") \
		$(foreach override,$(SET),--set "$(override)")

test: .venv/ready
	$(BIN)/python -m pytest

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

# What the store lacks of bench/ablation.toml, then docs/quality.md: failed trials (exit code 1) are
# named there. Cut it at any time; it goes on where it stopped.
ablation: .venv/ready
	@$(BIN)/python -m bench.ablation run --dataset "$(DATASET)" $(if $(WEIGHTS),--weights "$(WEIGHTS)") \
		--store "$(or $(STORE),./etstpm-store)" || test $$? -eq 1
	@$(BIN)/python -m bench.ablation table --store "$(or $(STORE),./etstpm-store)"

.venv-bench/ready: bench/peer-requirements.txt .venv/ready
	@$(BIN)/uv venv --quiet --clear .venv-bench
	@$(BIN)/uv pip install --quiet --python .venv-bench/bin/python --requirement $<
	@touch $@

# The lock holds hashes and no index addresses; it is universal (Linux and macOS, Python >= 3.11).
lock: .venv/ready
	$(BIN)/uv pip compile pyproject.toml --extra export --extra pipeline --group dev --universal \
		--generate-hashes --no-emit-index-url --no-header --quiet --output-file requirements.lock

.venv/ready: requirements.lock pyproject.toml
	@test -x $(BIN)/python || { echo "making .venv"; $(PYTHON) -m venv .venv; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "installing what requirements.lock pins"
	@$(BIN)/uv pip install --quiet --require-hashes --requirement requirements.lock
	@$(BIN)/uv pip install --quiet --no-deps --editable .
	@touch $@

clean:
	rm -rf .venv .venv-bench .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist
