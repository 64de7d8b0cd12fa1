# Learning without Labels, Theorem by Theorem. `make help` lists the commands.
# Everything runs in .venv, built from requirements/*.txt; nothing else on the machine is touched, except that
# `make test` installs Chromium and Slurm from Debian's packages where it may (Debian, root) and they are missing.

PYTHON ?= python3
PROFILE ?= cpu
EXECUTOR ?= local
PORT ?= 8000
C ?=
ALL ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PINS := $(addprefix requirements/,core.txt workflow.txt book.txt test.txt)
ENV := $(VENV)/.ready
DRIVE = $(BIN)/python workflow/reproduce.py
SLURM := $(if $(filter slurm,$(EXECUTOR)),$(VENV)/.slurm)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env reproduce test book serve lab chapter verify bench clean lint unit book-tests

help:  ## list the commands
	@echo "make COMMAND [VARIABLE=value ...]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: PROFILE=smoke|cpu|gpu ($(PROFILE))  C=01 (a chapter)  EXECUTOR=local|slurm  ALL=1 (long table)"
	@echo "           PYTHON=$(PYTHON) (3.11 or newer)  PORT=$(PORT) (make serve)"

env: $(ENV)  ## build .venv from the pins, if they have changed

reproduce: $(ENV) $(SLURM)  ## fetch the data, run every chapter, check the ledger, build the book, print the verdicts
	@$(DRIVE) reproduce --profile $(PROFILE) --executor $(EXECUTOR) $(if $(ALL),--all)

chapter: $(ENV) $(SLURM)  ## run one chapter: make chapter C=01 PROFILE=smoke
	@$(DRIVE) chapter --chapter "$(C)" --profile $(PROFILE) --executor $(EXECUTOR) $(if $(ALL),--all)

book: $(ENV)  ## build the book from executed chapters, executing none
	@$(DRIVE) book --profile $(PROFILE)

verify: $(ENV)  ## print the verdicts on results/PROFILE, running nothing; fails where make reproduce would
	@$(DRIVE) verify --profile $(PROFILE) $(if $(C),--chapter "$(C)") $(if $(ALL),--all)

serve: $(ENV)  ## serve the built book on this machine
	@test -f _build/$(PROFILE)/html/index.html || { echo "error: no book yet; make reproduce PROFILE=$(PROFILE)"; exit 1; }
	@echo "http://127.0.0.1:$(PORT)/ (Ctrl-C stops)"
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/$(PROFILE)/html

lab: $(ENV)  ## JupyterLab on the notebooks' sources
	@$(BIN)/jupyter lab --notebook-dir . $(ARGS) notebooks

test: $(ENV)  ## lint, types, import contracts, tests, every notebook in smoke, the strict book build, browser tests
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory unit
	@echo "== every chapter in the smoke profile, the ledger, the strict book build"
	@$(DRIVE) reproduce --profile smoke
	@$(MAKE) --no-print-directory book-tests

lint: $(ENV)
	@echo "== lint, types, import contracts"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

# Exit status 77 of slurm.sh: no Slurm, and it has said so; the tests that need it are skipped. They have a call of their
# own, in one process, since they share one cluster; with ARGS there is one call, and each process starts its own.
unit: $(ENV)
	@echo "== tests and doctests, a run on a Slurm of one node among them"
	@status=0; workflow/slurm.sh || status=$$?; \
	if [ $$status -eq 0 ]; then $(MAKE) --no-print-directory $(VENV)/.slurm; elif [ $$status -ne 77 ]; then exit $$status; fi
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --ignore=tests/book --jaxtyping-packages=companion.theory,beartype.beartype $(or $(ARGS),-m "not slurm")
	@$(if $(ARGS),,OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm tests/workflow/test_slurm.py)

# Exit status 77 of browser.sh: no browser, and it has said so; whatever needs none is still tested.
book-tests: $(ENV)
	@echo "== the rendered book, its files and in headless Chromium"
	@status=0; workflow/browser.sh || status=$$?; \
	if [ $$status -eq 77 ]; then without="--ignore=tests/book/test_browser.py --ignore=tests/book/test_explorables.py"; elif [ $$status -ne 0 ]; then exit $$status; fi; \
	$(BIN)/python -m pytest tests/book $$without $(ARGS)

bench: $(VENV)/.bench  ## measure, and write benchmarks/RECORDS.md
	@$(BIN)/python -m benchmarks $(ARGS)

clean:  ## remove everything built, the environment excepted (rm -r .venv removes that, too)
	@rm -rf _build results/smoke build .grimp_cache .snakemake .pytest_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

# The stamp is written last: a build that was killed is done again. The package itself is linked in, without its
# dependencies and without a second download (pyproject.toml may change without the pins).
$(ENV): $(VENV)/.pins pyproject.toml
	@$(BIN)/python -m pip --disable-pip-version-check install -qq --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.pins: $(PINS) workflow/environment.py
	@command -v "$(PYTHON)" >/dev/null || { echo "error: no $(PYTHON) here; call make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" workflow/environment.py $(VENV) $(PINS)
	@touch $@

$(VENV)/.slurm $(VENV)/.bench: $(VENV)/.%: $(ENV) requirements/%.txt
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet -r requirements/$*.txt
	@touch $@
