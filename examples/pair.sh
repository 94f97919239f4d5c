#!/bin/sh
# All steps with the bundled pair, from `collect` on its training task to `report` on its test tasks, in the current folder.
# It needs no GPU, no account and no download. QUESTIONS=50 uses 50 questions of each task instead of all.
set -e
export HF_HUB_OFFLINE=1
limit=${QUESTIONS:+--limit $QUESTIONS}

# 1. Answer the training questions at every stage; the grades of the answers are the labels.
lm-eval-tandem collect --tasks tandem_pair_math_train $limit --no_mentor --batch_size 64 --output collected

# 2. Fit the classifier, choose its thresholds out of sample, and list the whole trade-off; this runs no model.
lm-eval-tandem fit collected --output judge --objective "cost@accuracy>=always_high"
lm-eval-tandem thresholds collected --classifier judge

# 3. Run the cascade, and the policies that it is compared with, on the test questions.
for policy in intern stage:1 stage:2 stage:3 mentor budget_forcing:120 llm_cascade escalate cascade; do
    python -m lm_eval_tandem --model tandem \
        --model_args "policy=$policy,classifier=judge,store=store.sqlite,ledger=runs/ledgers/$policy.jsonl,record_features=True" \
        --tasks tandem_pair_math,tandem_pair_code $limit --batch_size 64 --output_path runs --log_samples
done

# 4. Make every table and figure for which these runs have data: report/README.md, report/report.html, …
lm-eval-tandem report runs --collected collected --classifier judge --by steps --output report
