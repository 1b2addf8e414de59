# Everything on a machine that has only Python and make. `.venv` is made on first use, and again when
# pyproject.toml changes; ARGS go to the command:  make run ARGS="--steps 20"   make fast ARGS="-k exchange"

PYTHON ?= python3
ARGS ?=

VENV := .venv/bin/python
READY := .venv/.installed
OLDEST := $(shell sed -n 's/^requires-python = ">=\(.*\)"/\1/p' pyproject.toml)
PYTEST := $(VENV) -m pytest
# Tests keep to one thread each; a process takes 0.6 GB. Those of a file share what it starts once; files that take long
# come first (tests/conftest.py), so that none of them is left over at the end.
SPREAD := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
CUDA := gpu or two_gpus

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# What pytest makes of the asserts is kept: else each process takes five seconds to make it again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test fast check soak clean

run: $(READY)
	$(VENV) -m splitnet.run --towers 2 $(ARGS)

# Fake devices and CUDA do not share a process, so the GPU tests come first, in one of their own (5: it has none).
test: $(READY)
	$(PYTEST) -m "($(CUDA)) and not soak" $(ARGS) $$(grep -lE 'mark\.(gpu|two_gpus)' tests/test_*.py) || [ $$? -eq 5 ]
	$(PYTEST) $(SPREAD) -m "not ($(CUDA)) and not soak" $(ARGS)

fast: $(READY)
	$(PYTEST) $(SPREAD) -m "not slow and not ranks and not ($(CUDA)) and not soak" $(ARGS)

check: $(READY)
	$(VENV) -m ruff format --check .
	$(VENV) -m ruff check .
	$(VENV) -m mypy
	$(MAKE) --no-print-directory fast

soak: $(READY)
	$(PYTEST) $(SPREAD) -m soak $(ARGS)

# What tools leave behind; the environment and the runs under profiles/ stay.
clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# `.unfinished` stands while a new environment is filled, so that an interrupted one is made again from nothing.
$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || \
	    { echo "splitnet: error: $(PYTHON) not found; name a Python >= $(OLDEST): make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; \
	    sys.exit("splitnet: error: $(PYTHON) is Python " + v + "; name one >= $(OLDEST): make PYTHON=/path/to/python" \
	    if sys.version_info[:2] < tuple(map(int, "$(OLDEST)".split("."))) else 0)'
	@if [ -e .venv/.unfinished ] || ! $(VENV) -m pip --version >/dev/null 2>&1; then \
	    echo "Making .venv (PyTorch is a download of up to 3 GB; this happens once)"; \
	    rm -rf .venv && mkdir .venv && touch .venv/.unfinished && $(PYTHON) -m venv .venv; fi
	$(VENV) -m pip install --editable '.[dev]'
	@rm -f .venv/.unfinished
	@touch $@
