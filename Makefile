# Each target makes the environment that it needs: Python >= 3.11 and make are enough to begin with.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TESTS  ?= tests histo_ssl
PIP    := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip --quiet

.PHONY: help demo test check format audit bench bench-gpu bench-check wheel-test clean

help:               ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/.run  ## the main job on generated slides: pretrain DINO, score it, write runs/report/index.html
	$(BIN)/python -m histo_ssl method=dino backbone=vit_t

test: $(VENV)/.dev  ## all tests, on two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(TESTS)

check: $(VENV)/.dev ## ruff and mypy --strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev ## let ruff lay out the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

audit: $(VENV)/.dev ## known vulnerabilities of what is installed; needs PyPI's own server, a mirror may not know them
	$(BIN)/pip-audit --strict --skip-editable

bench: $(VENV)/.bench ## our speed in turn with that of other libraries, on the CPU; writes runs/bench.json
	mkdir -p runs
	$(BIN)/python benchmarks/bench.py --json runs/bench.json

bench-gpu: $(VENV)/.bench ## the same of what runs on a GPU; writes runs/bench-gpu.json
	mkdir -p runs
	$(BIN)/python benchmarks/bench.py --device cuda --json runs/bench-gpu.json

bench-check: $(VENV)/.bench ## whether a ratio in runs/bench.json is below benchmarks/reference.json
	$(BIN)/python benchmarks/check.py runs/bench.json

wheel-test: $(VENV)/.dev ## build the wheel, install it into an empty environment, run from an empty folder
	rm -rf dist .venv-wheel
	$(BIN)/python -m build --wheel
	$(PYTHON) -m venv .venv-wheel
	PIP_DISABLE_PIP_VERSION_CHECK=1 .venv-wheel/bin/python -m pip --quiet install dist/*.whl
	cd "$$(mktemp -d)" && $(CURDIR)/.venv-wheel/bin/python -m histo_ssl --cfg job method=dino backbone=vit_t

clean:              ## remove environments and build products; runs/ stays
	rm -rf .venv .venv-* dist

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(BIN)/python
	$(PIP) install --editable .
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(PIP) install --editable ".[dev]"
	touch $@

$(VENV)/.bench: pyproject.toml | $(BIN)/python
	$(PIP) install --editable ".[bench]"
	touch $@
