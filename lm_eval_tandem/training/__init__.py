"""What is done once per pair of models: collect training questions, fit a classifier, choose its thresholds.

In this order: `collect` (running the cascade's stages), `fit`, and `tradeoff` (the commands `fit` and `thresholds`).
"""
