# make demo | test | test-full | check: each makes its own .venv if there is none.
PYTHON ?= python3
BIN := .venv/bin
# The known-good set; make PIPFLAGS= takes the newest versions that pyproject.toml allows.
PIPFLAGS ?= -c constraints.txt

.PHONY: demo test test-full check install lowest

.venv/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "making .venv (about 7 GB, most of it torch)"; $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIPFLAGS) -e '.[dev]'
	@touch $@

install: .venv/.installed

demo: .venv/.installed
	$(BIN)/deepvit study quickstart --out demo

# The fast suite.
test: .venv/.installed
	$(BIN)/python -m pytest

# With the tests that are marked slow.
test-full: .venv/.installed
	$(BIN)/python -m pytest -m ""

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The lowest versions that pyproject.toml allows, without what torch itself pins. Needs uv (pip install uv).
lowest:
	{ echo "# The lowest versions that pyproject.toml allows, with which the tests pass as well (Python 3.11, Linux). make lowest writes it."; \
	  uv pip compile --quiet --resolution lowest-direct --python-version 3.11 --extra dev --no-annotate --no-header pyproject.toml \
	  | grep -vE '^(nvidia-|cuda-|triton=|setuptools=)'; } > constraints-lowest.txt
