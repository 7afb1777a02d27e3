# `make demo` and `make test` do it all on a fresh machine: environment, packages, work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench docs clean

# An earlier demo is moved aside, never deleted.
demo: $(STAMP)
	@if [ -d runs/demo ]; then mv runs/demo runs/demo-$$(date +%Y%m%d-%H%M%S); fi
	$(BIN)/bonsai train stdlib --name demo
	$(BIN)/bonsai sample runs/demo --prompt "def " --tokens 200
	$(BIN)/bonsai eval runs/demo
	@echo "open runs/demo/report.html in a browser"

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# NANOGPT: a checkout of nanoGPT to measure against; TEXT: Tiny Shakespeare. Without them, the toys alone.
NANOGPT ?=
TEXT ?= tinyshakespeare.txt
bench: $(STAMP)
	$(BIN)/python benchmarks/toys.py zero_one
	$(BIN)/python benchmarks/toys.py sort
ifneq ($(NANOGPT),)
	$(BIN)/python benchmarks/train_speed.py --nanogpt $(NANOGPT) --text $(TEXT)
	$(BIN)/python benchmarks/time_to_loss.py --nanogpt $(NANOGPT) --text $(TEXT)
endif

# The handbook is plain Markdown; this makes pages with a menu and a search of it, in site/index.html.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "open site/index.html; the search needs: $(BIN)/python -m http.server -d site"

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# pip, not another installer: it takes a local build of torch where one is set up.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("bonsai needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache dist
