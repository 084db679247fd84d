# Two commands on a fresh machine: make demo, make test. Both make .venv, nothing else has to be set up.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
PEERS := .peers/installed
NEXT := .next/installed

# Freed memory is kept for the next tensor: in virtual machines fresh pages can cost more than the arithmetic.
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 8589934592

# Two processes of one thread each finish sooner than one process of two; an idle one takes tests from the other.
PYTEST := -m pytest --numprocesses 2 --dist worksteal
TESTS := test test-integration test-statistics test-next test-all
$(TESTS): export OMP_NUM_THREADS := 1
# Compiling the tests and the package anew in every process takes longer than many tests.
unexport PYTHONDONTWRITEBYTECODE
# Share of the simulations' draws; CI takes fewer.
DRAWS ?= 1

.PHONY: demo bench docs lint clean embedded $(TESTS)

demo: $(INSTALLED)
	$(BIN)/tl-steer demo

# Unit tests and oracles on tiny models and the embedded one: before every commit.
test: $(INSTALLED) embedded
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python $(PYTEST) -m "not integration and not statistics and not slow"

# Notebooks, browser, Ray, killed processes, docs, packaging, training, argument fuzzing.
test-integration: $(INSTALLED) embedded
	$(BIN)/python $(PYTEST) -m "integration and not slow"

# Simulations of coverage and of null distributions, without run-time type checks (the other tiers have them);
# make test-statistics DRAWS=0.25 takes a quarter of the draws.
test-statistics: $(INSTALLED) embedded
	$(BIN)/python $(PYTEST) -m "statistics and not slow" --draws $(DRAWS) --jaxtyping-packages=""

# TransformerLens 4 has only the bridge: models, engine and the first notebook, in an environment of its own.
# With bitsandbytes: quantised weights are tested here, because it writes to stderr in every process that finds it.
test-next: $(INSTALLED) $(NEXT) embedded
	.next/bin/python $(PYTEST) tests/test_backends.py tests/test_paths.py --nbmake notebooks/01*.ipynb

# All of them, in full.
test-all: test-next
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python $(PYTEST)

embedded: $(INSTALLED)
	$(BIN)/tl-steer models get smollm2-135m-instruct

# Into build/site, without a warning.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/mkdocs.yml
	@echo "build/site/index.html; to search in it: $(BIN)/python -m http.server -d build/site"

# Next to other libraries, about half an hour on two cores; parts of it: make bench ONLY="capture growth".
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
	# Vectors are exchanged with these in the tests; what they ask for is older than what they work with.
	$(BIN)/python -m pip install --quiet --no-deps repeng==0.4.0 steering-vectors==0.12.2
	touch $(INSTALLED)

# What tl_steer is timed against, in an environment of its own: repeng and steering-vectors pin old versions.
$(PEERS):
	$(PYTHON) -m venv .peers
	.peers/bin/python -m pip install --quiet --upgrade pip
	.peers/bin/python -m pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate tqdm gguf scikit-learn
	.peers/bin/python -m pip install --quiet --no-deps steering-vectors==0.12.2 repeng==0.4.0
	touch $(PEERS)

$(NEXT): setup.cfg pyproject.toml constraints.txt requirements-tl4.txt
	$(PYTHON) -m venv .next
	.next/bin/python -m pip install --quiet --upgrade pip
	sed 's/^transformer-lens==.*/transformer-lens==4.3.0/' constraints.txt > .next/constraints.txt
	.next/bin/python -m pip install --quiet --constraint .next/constraints.txt --requirement requirements-tl4.txt \
		accelerate bitsandbytes==0.50.2 pytest pytest-xdist beartype hypothesis nbmake
	.next/bin/python -m pip install --quiet --no-deps --editable .
	touch $(NEXT)

clean:
	rm -rf .venv .peers .next build dist *.egg-info
