"""The judge: is the insight so far enough for the intern to answer well (paper, section 2.4)?

`features.py` turns the intern's token statistics into 18 numbers, `artefact.py` turns those into a score and keeps the
fitted classifier on disk. Fitting one, and choosing when a score is high enough, is in `lm_eval_tandem.training`.
Importing this package is light; judging needs numpy and scikit-learn, only fitting needs torch.
"""
