# make pretrain   set up, prepare the embedded corpus, train a small GPT on 2 processes, print samples
# make test       set up, lint, type-check and test, with a core of the scenarios on a Slurm cluster
# make test-slurm all scenarios on a Slurm cluster of four nodes, which it installs as root on Debian or Ubuntu
# make bench      the benchmarks of benchmarks/
# Each target makes what it needs in .venv once; nothing is redone while pyproject.toml stays as it is.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := configs/pretrain/demo.toml
NPROC  ?= 2

# Tests and runs start hundreds of processes; each would compile dgpt anew where the environment forbids caches.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup pretrain test test-ranks test-units test-launch test-cluster test-slurm slurm lint bench clean

help:
	@sed -n '1,/^$$/s/^# //p' Makefile

$(VENV)/created:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else \
	  f"dgpt needs Python 3.11 or newer, {sys.executable} is {v.major}.{v.minor}; run: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed: pyproject.toml $(VENV)/created
	@echo "installing torch, deepspeed and the rest into $(VENV); some minutes the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml $(VENV)/created
	@echo "installing torch, deepspeed and the rest into $(VENV); some minutes the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/installed

setup: $(VENV)/installed

pretrain: $(VENV)/installed
	$(BIN)/dgpt prepare $(DEMO)
	$(BIN)/dgpt pretrain $(DEMO) --nproc $(NPROC)
	$(BIN)/dgpt generate runs/demo "def " "class " "import " --samples 1 --max-new-tokens 80

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck launch/*.sh tests/slurm/*.sh slurm/*.sbatch slurm/*.sh .ci/run

slurm:
	sh tests/slurm/install.sh

# Two at a time, those with an eye on the clock last: ranks keep both cores busy, launchers and clusters mostly wait.
test:
	@$(MAKE) --no-print-directory --jobs 2 lint slurm
	@code=0; for pair in "test-ranks test-units" "test-launch test-cluster"; do \
	$(MAKE) --no-print-directory --keep-going --jobs 2 $$pair || code=1; done; exit $$code

test-ranks: $(VENV)/installed-dev
	@$(BIN)/pytest tests/distributed tests/gpu

test-launch: $(VENV)/installed-dev
	@$(BIN)/pytest tests/launch

# These two run beside another, and are printed when they have ended.
test-units: $(VENV)/installed-dev
	@echo "tests/unit runs, and is printed at its end; until then see $(VENV)/units.log"
	@$(BIN)/pytest tests/unit > $(VENV)/units.log 2>&1; code=$$?; cat $(VENV)/units.log; exit $$code

test-cluster: $(VENV)/installed-dev
	@echo "tests/slurm runs, and is printed at its end; until then see $(VENV)/cluster.log"
	@$(BIN)/pytest tests/slurm > $(VENV)/cluster.log 2>&1; code=$$?; cat $(VENV)/cluster.log; exit $$code

test-slurm: $(VENV)/installed-dev slurm
	$(BIN)/pytest tests/slurm -m ""

bench: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.tokenize
	$(BIN)/python -m benchmarks.loader
	$(BIN)/python -m benchmarks.train

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
