"""The models `tandem` and `ensemble` of lm-evaluation-harness, at the place that entry points and import hook name."""

from lm_eval_tandem.harness.ensemble_model import EnsembleLM
from lm_eval_tandem.harness.model import TandemLM

__all__ = ["EnsembleLM", "TandemLM"]
