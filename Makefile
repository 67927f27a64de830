# Everything runs in .venv inside the checkout; `make setup` is run by whatever needs it.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types contracts tests long docs claims bench networks fuzz clean

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */  make \1\t/' | expand -t 20

# constraints.txt names everything that is needed, so nothing has to be resolved, which takes longer than installing it.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (a few minutes the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -r constraints.txt -e .
	@$(BIN)/python -m pip check --disable-pip-version-check
	@touch $@

setup: $(STAMP)  ## the environment, in .venv

demo: $(STAMP)  ## MiniLM at half its parameters, with a page that shows what was saved and lost (ten minutes)
	@$(BIN)/isthmus demo -o demo

test: lint types contracts tests  ## all that must pass: style, types, import contracts, tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports

# One thread a worker: two workers on two cores would otherwise get in each other's way.
tests: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not long"

long: $(STAMP)  ## the longest tests, which make test leaves out (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m long

docs: $(STAMP)  ## the tables in docs/, from the methods and the results of their claims
	$(BIN)/python -m isthmus.methods docs/methods.md
	$(BIN)/python -m claims --table
	$(BIN)/python -m benchmarks --table
	$(BIN)/python tests/write_networks.py --table

claims: $(STAMP)  ## run the experiments that test the papers' claims (hours; needs ISTHMUS_DATA)
	$(BIN)/python -m claims
	$(BIN)/python -m isthmus.methods docs/methods.md

bench: $(STAMP)  ## side by side with other tools (needs ISTHMUS_DATA)
	$(BIN)/python -m benchmarks

networks: $(STAMP)  ## ask the doctor about every architecture (minutes), for docs/networks.md
	$(BIN)/python tests/write_networks.py --again

fuzz: $(STAMP)  ## feed the decoder of coded weights 100,000 damaged inputs (minutes)
	$(BIN)/python tests/fuzz.py --inputs 100000 --seed 0

clean:  ## take away what was made, but not .venv
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
