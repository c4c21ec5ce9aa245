# `make demo` trains three losses on built-in phantoms; `make test` is what CI calls. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
SWEEP := demo_$(shell date +%Y-%m-%d_%H-%M-%S)

SIDE_BY_SIDE := -n logical --maxprocesses 4

.PHONY: demo test coverage lint setup clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train bce_dice, dynamit and boundary_dou on phantoms and compare them (3 to 7 minutes on 2 cores)"
	@echo "make test    ruff, mypy and pytest"
	@echo "make coverage  pytest once more, and which lines it runs; takes nearly twice as long"
	@echo "make setup   only .venv with the pinned versions of constraints.txt"

setup: .venv/.complete

.venv/.complete: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
	  f"raremask needs Python 3.11 to 3.13, and $(PYTHON) is {v[0]}.{v[1]}. Try: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv .venv
	@echo "Installing the pinned packages (PyTorch with CUDA is 6 GB on Linux: 3 minutes and more)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: setup
	$(BIN)/python src/train.py --multirun experiment=demo loss=bce_dice,dynamit,boundary_dou sweep=$(SWEEP)
	$(BIN)/python src/compare.py runs=outputs/sweeps/$(SWEEP)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy

test: lint
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

coverage: setup  # of what runs in the tests' own processes; many start others
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --cov=raremask --cov-report=term:skip-covered

clean:
	rm -rf .venv
