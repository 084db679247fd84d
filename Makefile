# Two commands on a fresh machine: make demo, make test. Both make .venv, nothing else has to be set up.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

# Freed memory is kept for the next tensor: in virtual machines fresh pages can cost more than the arithmetic.
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 8589934592

.PHONY: demo test test-all lint clean

demo: $(INSTALLED)
	$(BIN)/tl-steer demo

test: $(INSTALLED)
	$(BIN)/tl-steer models get smollm2-135m-instruct
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "not slow"

# What takes longer, too.
test-all: $(INSTALLED)
	$(BIN)/tl-steer models get smollm2-135m-instruct
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $(INSTALLED)

clean:
	rm -rf .venv build dist *.egg-info
