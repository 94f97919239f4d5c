"""What made a results folder, and whether it comes out again: `lm-eval-tandem reproduce RESULTS [--run]`.

1. `harness_command` writes the lm_eval command that made a run, which `reports.sources.recorded_runs` reads.
2. `facts` compares what the run recorded of itself with what is here: `versions`, `models` with adapters and
   classifier, and `data`.
3. `rerun` runs the command again and compares scores and answers question by question.

`command` is the command line.
"""
