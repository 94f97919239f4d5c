# make test: what the README names and .ci/run calls. Everything runs against the installed wheel, never the checkout.
PYTHON ?= python3
VENV ?= .venv
TESTS ?= -m "not slow"

ROOT := $(CURDIR)
BIN := $(abspath $(VENV))/bin
WHEEL = $(wildcard $(ROOT)/dist/lm_eval_tandem-*.whl)

.PHONY: help wheel install test lint clean

help:
	@echo "make test | lint | wheel | install | clean   (VENV=$(VENV), PYTHON=$(PYTHON), TESTS='$(TESTS)')"

$(BIN)/python:
	$(PYTHON) -m venv "$(abspath $(VENV))"

wheel: $(BIN)/python
	rm -f dist/lm_eval_tandem-*.whl
	"$(BIN)/python" -m pip wheel --quiet --no-deps --wheel-dir dist .
	rm -rf build lm_eval_tandem.egg-info

# the second line replaces a wheel of the same version, which pip takes for satisfied
install: wheel
	"$(BIN)/python" -m pip install --quiet -c constraints.txt "$(WHEEL)[test,dev]"
	"$(BIN)/python" -m pip install --quiet --no-deps --force-reinstall "$(WHEEL)"

# in a folder of its own: there the package cannot be imported from the checkout by accident
test: install
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cp -R tests setup.cfg "$$folder" && cd "$$folder" && \
	HF_HUB_OFFLINE=1 "$(BIN)/python" -m pytest $(TESTS)

lint: install
	"$(BIN)/python" -m ruff check .
	"$(BIN)/python" -m ruff format --check .
	"$(BIN)/python" -m mypy lm_eval_tandem _lm_eval_tandem_hook.py

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
