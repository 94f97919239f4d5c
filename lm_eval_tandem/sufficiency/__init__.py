"""The judge: is the insight so far enough for the intern to answer well (paper, section 2.4)?

`features.py` turns the intern's token statistics into 18 numbers, `classifier.py` turns those into a score and keeps
the artefact on disk, `thresholds.py` chooses when a score is high enough, `fit.py` does all of it on collected data.
Importing this package is light; judging needs numpy and scikit-learn, only fitting needs torch.
"""
