# make demo | test | test-full | check | docs: each makes its own .venv if there is none. make demo SEED=1 takes another seed.
PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
# The known-good set; make PIPFLAGS= takes the newest versions that pyproject.toml allows.
PIPFLAGS ?= -c constraints.txt

.PHONY: demo test test-full check install lowest docs notebooks

# --no-compile: of 7 GB most is never imported. What is, Python compiles once and keeps, unless it is told not to write
# bytecode, as in many containers: then every start would compile it anew (21 seconds instead of 8).
unexport PYTHONDONTWRITEBYTECODE
WARM := import deepvit.cli, deepvit.training, deepvit.tasks, deepvit.report

.venv/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "making .venv (about 7 GB, most of it torch)"; $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile $(PIPFLAGS) -e '.[dev]'
	$(BIN)/python -c '$(WARM)'
	@touch $@

install: .venv/.installed

demo: .venv/.installed
	$(BIN)/deepvit study quickstart --out demo --seeds $(SEED)

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

# The site, in an environment of its own: it reads sources, and needs no torch. Warnings are errors.
DOCS := .venv-docs/bin
EXTRA := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")

.venv-docs/.installed: pyproject.toml constraints.txt
	@test -x $(DOCS)/python || { echo "making .venv-docs (about 150 MB)"; $(PYTHON) -m venv .venv-docs; }
	$(PYTHON) -c '$(EXTRA)' > .venv-docs/requirements.txt
	$(DOCS)/python -m pip install --quiet --disable-pip-version-check $(PIPFLAGS) -r .venv-docs/requirements.txt
	@touch $@

docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/mkdocs build --strict # not --quiet, which counts no warnings
	@echo "the site: site/index.html"

# Run the notebooks and keep what they show.
notebooks: .venv/.installed
	$(BIN)/python docs/make/notebooks.py --write

# The lowest versions that pyproject.toml allows, without what torch itself pins. Needs uv (pip install uv).
lowest:
	{ echo "# The lowest versions that pyproject.toml allows, with which the tests pass as well (Python 3.11, Linux). make lowest writes it."; \
	  uv pip compile --quiet --resolution lowest-direct --python-version 3.11 --extra dev --no-annotate --no-header pyproject.toml \
	  | grep -vE '^(nvidia-|cuda-|triton=|setuptools=)'; } > constraints-lowest.txt
