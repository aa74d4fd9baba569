# setup · check · test · faults · bench · bench-verdict · bench-dataplane · demo · demo-shadow · lock. The second run of any of them needs no network.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup check test faults bench bench-verdict bench-dataplane demo demo-shadow lock
.DELETE_ON_ERROR:

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "deployctl needs Python 3.11 or newer, and $(PYTHON) is not; try: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { \
	  echo "no virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: setup
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not alone"
	$(BIN)/pytest -m alone

# The long versions; ends with a table of what was tried and what was violated. Hours: CI runs the short ones with `test`.
faults: setup
	$(BIN)/pytest tests/faults --long --timeout 14400

bench: setup
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script; done

bench-verdict: setup
	$(BIN)/python -m benchmarks.verdict

# Installs what it compares with into .bench/, and nginx, HAProxy and wrk where it may; what cannot be had is left out, with the reason.
bench-dataplane: setup
	$(BIN)/python -m benchmarks.dataplane

demo: setup
	@$(BIN)/deployctl demo

demo-shadow: setup
	@$(BIN)/deployctl demo shadow

# Every package with every hash, for any platform; names no index, so that a mirror serves as well. Takes minutes.
lock: setup
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"], sep="\n")' \
	  | $(BIN)/python -m piptools compile --quiet --strip-extras --allow-unsafe --generate-hashes --extra demo \
	    --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --output-file requirements.lock pyproject.toml -
