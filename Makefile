# make test: what the README names and .ci/run calls. Everything runs against the installed wheel, never the checkout.
PYTHON ?= python3
VENV ?= .venv
TESTS ?= -m "not slow"

ROOT := $(CURDIR)
BIN := $(abspath $(VENV))/bin
WHEEL = $(wildcard $(ROOT)/dist/lm_eval_tandem-*.whl)

# real benchmark rows, where they are; the tests that need them are skipped elsewhere
DATA ?= $(abspath $(ROOT)/../shared/data)

# what make demo and make results run on; QUESTIONS= all of them
QUESTIONS ?=
POLICIES ?= intern stage:1 stage:2 stage:3 mentor cascade
TASKS ?= tandem_pair_math,tandem_pair_code
LM_EVAL = HF_HUB_OFFLINE=1 "$(BIN)/lm_eval" --model tandem --include_path task_configs --batch_size 64 --log_samples $(if $(QUESTIONS),--limit $(QUESTIONS))

.PHONY: help demo wheel runtime install sandbox test lint classifier results clean

help:
	@echo "make demo | test | classifier | results | lint | wheel | install | clean   (VENV=$(VENV), PYTHON=$(PYTHON), TESTS='$(TESTS)')"

$(BIN)/python:
	$(PYTHON) -m venv "$(abspath $(VENV))"

wheel: $(BIN)/python
	rm -f dist/lm_eval_tandem-*.whl
	"$(BIN)/python" -m pip wheel --quiet --no-deps --wheel-dir dist .
	rm -rf build/lib build/bdist* lm_eval_tandem.egg-info

# the second line replaces a wheel of the same version, which pip takes for satisfied
install: wheel
	"$(BIN)/python" -m pip install --quiet -c constraints.txt "$(WHEEL)[test,dev]"
	"$(BIN)/python" -m pip install --quiet --no-deps --force-reinstall "$(WHEEL)"

runtime: wheel
	"$(BIN)/python" -m pip install --quiet -c constraints.txt "$(WHEEL)"
	"$(BIN)/python" -m pip install --quiet --no-deps --force-reinstall "$(WHEEL)"

# the intern alone, the mentor alone, the cascade: the harness's own table for each, then the three side by side
demo: runtime
	@for policy in intern mentor cascade; do \
		$(LM_EVAL) --tasks tandem_pair_math --model_args policy=$$policy,store=build/demo/store.sqlite --output_path build/demo || exit 1; \
	done
	@"$(BIN)/lm-eval-tandem" report build/demo --title "The bundled pair"

# the pair's classifier, fitted on the math training task alone
classifier: runtime
	HF_HUB_OFFLINE=1 "$(BIN)/lm-eval-tandem" collect --tasks tandem_pair_math_train --batch_size 64 --output build/collected
	"$(BIN)/lm-eval-tandem" fit build/collected --output classifiers/pair --objective "cost@accuracy>=always_high-0.0015"

# every policy on both domains, from a fresh store; results/pair/ holds what the harness wrote and the table made of it
results: runtime
	rm -rf results/pair build/results
	@for policy in $(POLICIES); do \
		$(LM_EVAL) --tasks $(TASKS) --model_args policy=$$policy,store=build/results/store.sqlite --output_path results/pair || exit 1; \
	done
	find results/pair -name 'samples_*.jsonl' -exec gzip -9 -n {} +
	"$(BIN)/lm-eval-tandem" report results/pair --title "Every policy on the bundled pair" --output results/pair/README.md

# the code tasks' sandbox; where it cannot be installed its tests say so and are skipped
sandbox:
	@command -v bwrap >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get -qq update && apt-get -qq install -y bubblewrap >/dev/null; } || \
		echo "bubblewrap is missing, so the sandbox tests are skipped; install it with: apt-get install bubblewrap"

# in a folder of its own: there the package cannot be imported from the checkout by accident
test: install sandbox
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cp -R tests results setup.cfg "$$folder" && cd "$$folder" && \
	HF_HUB_OFFLINE=1 TANDEM_TEST_DATA="$(DATA)" "$(BIN)/python" -m pytest $(TESTS)

lint: install
	"$(BIN)/python" -m ruff check .
	"$(BIN)/python" -m ruff format --check .
	"$(BIN)/python" -m mypy lm_eval_tandem _lm_eval_tandem_hook.py

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
