"""What made a results folder, and whether it comes out again: `lm-eval-tandem reproduce RESULTS [--run]`.

1. `recorded` reads a results file of the harness as one run, and writes the lm_eval command that made it.
2. `facts` compares what the run recorded of itself (versions, checksums of models, classifier and data) with what is
   here.
3. `rerun` runs the command again and compares scores and answers question by question.

`command` is the command line.
"""
