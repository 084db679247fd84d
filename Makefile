# Two commands on a fresh machine: make demo, make test. Both make .venv, nothing else has to be set up.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
PEERS := .peers/installed

# Freed memory is kept for the next tensor: in virtual machines fresh pages can cost more than the arithmetic.
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 8589934592

.PHONY: demo test test-all bench lint clean

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

# Beside other libraries, about twenty minutes on two cores; parts of it: make bench ONLY="capture growth".
bench: $(INSTALLED) $(PEERS)
	$(BIN)/tl-steer models get smollm2-135m-instruct
	cd tests && ../$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

lint: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $(INSTALLED)

# What tl_steer is timed against, in an environment of its own: repeng and steering-vectors pin old versions.
$(PEERS):
	$(PYTHON) -m venv .peers
	.peers/bin/python -m pip install --quiet --upgrade pip
	.peers/bin/python -m pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate tqdm gguf scikit-learn
	.peers/bin/python -m pip install --quiet --no-deps steering-vectors==0.12.2 repeng==0.4.0
	touch $(PEERS)

clean:
	rm -rf .venv .peers build dist *.egg-info
