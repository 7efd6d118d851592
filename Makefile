# make demo and make test do everything on a fresh machine with Python 3.11: make .venv, install the locked versions, run.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: demo test check format storm faults test-compose bench clean

demo: $(STAMP)
	$(BIN)/locum simulate --workers 2

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks
	$(BIN)/python -m protos.generate --check

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

storm: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m storm

faults: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m faults

test-compose: $(STAMP)
	$(BIN)/pytest -m compose tests/compose

bench: $(STAMP)
	$(BIN)/python benchmarks/overhead.py

$(STAMP): requirements.lock pyproject.toml
	@echo "Installing the locked versions into $(VENV); this takes some minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
