#!/bin/sh
# The bundled pair from `collect` on its training task to `report` on its test tasks, in the current folder, which may be
# empty: no GPU, no account, no download. QUESTIONS=50 takes so many questions of each task in place of all.
set -e
export HF_HUB_OFFLINE=1
limit=${QUESTIONS:+--limit $QUESTIONS}

# 1. every stage on the training questions, their grades as labels
lm-eval-tandem collect --tasks tandem_pair_math_train $limit --no_mentor --batch_size 64 --output collected

# 2. the classifier and its thresholds, out of sample; the whole trade-off, without a model
lm-eval-tandem fit collected --output judge --objective "cost@accuracy>=always_high"
lm-eval-tandem thresholds collected --classifier judge

# 3. the cascade and what it is compared with, on the test questions
for policy in intern stage:1 stage:2 stage:3 mentor budget_forcing:120 llm_cascade escalate cascade; do
    python -m lm_eval_tandem --model tandem \
        --model_args "policy=$policy,classifier=judge,store=store.sqlite,ledger=runs/ledgers/$policy.jsonl,record_features=True" \
        --tasks tandem_pair_math,tandem_pair_code $limit --batch_size 64 --output_path runs --log_samples
done

# 4. every table and figure that these runs fill: report/README.md, report/report.html, …
lm-eval-tandem report runs --collected collected --classifier judge --by steps --output report
