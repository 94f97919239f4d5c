"""The model `tandem` of lm-evaluation-harness, at the place that entry point and import hook name."""

from lm_eval_tandem.harness.model import TandemLM

__all__ = ["TandemLM"]
