# Every target makes .venv if it is missing, from nothing but Python 3.11 or later: with uv if it is installed, else with
# venv and pip. PYTHON=... names the interpreter to use.

BIN := .venv/bin
export PYTHON

.PHONY: help demo test lint types storm crash bench clean
.NOTPARALLEL:

help: ## Say what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' Makefile

demo: .venv/.ready-demo ## Run 18 tasks through the emulator, with live bars (about half a minute)
	@$(BIN)/python -m bide demo

test: .venv/.ready-test ## Run the tests (COVERAGE=1: with the coverage gate, which takes half as long again)
	$(BIN)/python -m pytest -n 4 --dist worksteal $(if $(COVERAGE),--cov --cov-report=term)

lint: .venv/.ready-lint ## Check style, format, import contracts and docstrings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/interrogate --quiet src/bide

types: .venv/.ready-types ## Check the types, and that the public ones are complete
	$(BIN)/mypy
	$(BIN)/pyright tests/typecheck
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright --verifytypes bide --ignoreexternal

storm: .venv/.ready-test ## Run simulated histories full of misfortunes until a promise is broken (SECONDS=60, or as long as you like)
	cd tests && ../$(BIN)/python -m simulation.storm --seconds $(or $(SECONDS),60)

crash: .venv/.ready-test ## Kill and stop the processes of one ledger, lock its file, cancel callers, and check what became of each task (six minutes)
	$(BIN)/python tests/crash/crash.py --kills 150
	$(BIN)/python tests/crash/crash.py --kills 60 --only sigstop,locked,cancelled,closed
	$(BIN)/python tests/crash/crash.py --kills 3 --only deleted

bench: .venv/.ready-benchmarks ## Run the benchmarks and check their goals (about a quarter of an hour)
	@missed=0; for file in $$(grep -l __main__ benchmarks/*.py); do $(BIN)/python "$$file" --check || missed=1; done; exit $$missed

clean: ## Remove .venv and everything else that was made here
	rm -rf .venv .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist demo-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.ready-%: pyproject.toml .ci/setup
	@sh .ci/setup $*
