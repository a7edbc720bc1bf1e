# Each target does all of its set-up. PYTHON names the interpreter that the environment is made with (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: run test test-faults test-fuzz test-slurm check dashboard bench docs reproduce clean

run: $(STAMP)  ## the main job: train, Hessians, spectra, report
	$(BIN)/python -m pipeline.run model=mlp strategy=func

test: $(STAMP)  ## format, lint, types, tests
	BIN=$(BIN) scripts/check.sh

test-faults: $(STAMP)  ## kills, disks that fail or fill up, damaged files, memory that runs out
	$(BIN)/python -m pytest tests/faults -s

test-fuzz: $(STAMP)  ## every strategy and matrix on generated nets; NETS=2000 takes a night
	FUZZ_NETS=$(or $(NETS),2000) $(BIN)/python -m pytest tests/fuzz/test_nets.py

test-slurm: $(STAMP)  ## sweeps, preemption, time limits and Dask workers on a real SLURM of this machine
	scripts/slurm_local.sh install
	SLURM_LOCAL_CPUS=2 scripts/slurm_local.sh run $(BIN)/python -m pytest tests/slurm

dashboard: $(STAMP)  ## the MLflow dashboard on 127.0.0.1
	$(BIN)/python -m pipeline.tracking.dashboard

bench: $(STAMP)  ## every strategy and other tools side by side, half an hour; NETS=mlp,conv for some nets only
	$(BIN)/python -m pip install --quiet --no-build-isolation --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python scripts/benchmark.py $(if $(NETS),--nets $(NETS))

docs: $(STAMP)  ## the site: build/docs/index.html, after its examples have been run (TESTED=1: they have been already)
	$(BIN)/python -m pip install --quiet --no-build-isolation --constraint constraints.txt --editable ".[docs]"
	$(if $(TESTED),,$(BIN)/python -m pytest tests/docs)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --fresh-env --quiet docs build/docs
	@echo "the site: build/docs/index.html"

reproduce: $(STAMP)  ## every experiment that measures a law, and one table of what holds; NAMES="duality symmetries" for some
	$(BIN)/python scripts/reproduce.py $(NAMES)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --no-build-isolation --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:  ## remove the environment and caches, never the outputs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
