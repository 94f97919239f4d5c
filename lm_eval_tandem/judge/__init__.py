"""The judge: whether the insight so far is enough for the intern to answer correctly (paper, section 2.4).

In the order of use: `features` and `probe` turn the intern's token measurements into numbers, `sufficiency` makes the
input vector (`input_schemas`) and its score, and `decision` compares that with the threshold. `artefact` keeps a fitted
classifier on disk, and `repository` finds it in a model repository; its kinds are in `registry`, `mlp` and
`estimators`. Fitting is in `lm_eval_tandem.training`.
Judging needs numpy and scikit-learn; only fitting needs torch.
"""
