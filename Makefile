# make demo | test | check: each makes its own .venv if there is none.
PYTHON ?= python3
BIN := .venv/bin
# The known-good set; make PIPFLAGS= takes the newest versions that pyproject.toml allows.
PIPFLAGS ?= -c constraints.txt

.PHONY: demo test check install

.venv/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "making .venv (about 5.5 GB: torch, torchvision and timm)"; $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIPFLAGS) -e '.[dev]'
	@touch $@

install: .venv/.installed

demo: .venv/.installed
	$(BIN)/deepvit study quickstart --out demo

test: .venv/.installed
	$(BIN)/python -m pytest

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
