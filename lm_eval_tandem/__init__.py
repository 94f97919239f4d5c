"""Tandem (Fu et al., 2026) as a model of lm-evaluation-harness: a mentor's insights, a judge, an intern's answer.

Importing this package is light: torch, transformers and lm_eval are only imported when a model is built.
"""

__version__ = "0.1.0"
