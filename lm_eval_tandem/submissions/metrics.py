"""What each metric is: its id and name elsewhere, its unit, and the bounds between which it lies.

The harness names a metric and whether more of it is better; a board also wants to know what it may be compared with. A
metric that is not here goes out without bounds, rather than with invented ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

INFINITY = float("inf")
HARNESS = "lm-evaluation-harness"
PROJECT = "lm-eval-tandem"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes
    ----------
    id
        A general id where the metric is a general one, otherwise one that begins with the program that defines it.
    name
        What people call it.
    kind
        The family of metrics that it belongs to.
    unit
        The unit of its values.
    bounds
        The lowest and the highest value that it can have; None where that is not known.
    description
        What it measures, in a sentence; "" for metrics that need none.
    """

    id: str
    name: str
    kind: str
    unit: str
    bounds: tuple[float, float] | None
    description: str = ""

    @property
    def is_proportion(self) -> bool:
        """Whether values are shares, so that Wilson's interval is that of their mean."""
        return self.unit == "proportion" and self.bounds == (0.0, 1.0)


def share(identifier: str, name: str, kind: str, description: str = "") -> Metric:
    """Return a metric whose values are shares."""
    return Metric(identifier, name, kind, "proportion", (0.0, 1.0), description)


def own(name: str, label: str, kind: str, unit: str, description: str) -> Metric:
    """Return a metric of this package that has no upper bound: a cost."""
    return Metric(f"{PROJECT}.{name}", label, kind, unit, (0.0, INFINITY), description)


GENERAL = {
    "acc": share("accuracy", "Accuracy", "accuracy"),
    "accuracy": share("accuracy", "Accuracy", "accuracy"),
    "acc_norm": share(f"{HARNESS}.acc_norm", "Accuracy, normalised by length", "accuracy"),
    "acc_mutual_info": share(f"{HARNESS}.acc_mutual_info", "Accuracy by mutual information", "accuracy"),
    "exact_match": share("exact-match", "Exact match", "exact_match"),
    "em": share("exact-match", "Exact match", "exact_match"),
    "f1": share("f1", "F1", "f1"),
    "mc1": share(f"{HARNESS}.mc1", "MC1", "accuracy"),
    "mc2": share(f"{HARNESS}.mc2", "MC2", "accuracy"),
    "math_verify": share(f"{HARNESS}.math_verify", "Accuracy by math-verify", "accuracy"),
    "prompt_level_strict_acc": share(f"{HARNESS}.prompt_level_strict_acc", "Prompt-level strict accuracy", "accuracy"),
    "prompt_level_loose_acc": share(f"{HARNESS}.prompt_level_loose_acc", "Prompt-level loose accuracy", "accuracy"),
    "inst_level_strict_acc": share(f"{HARNESS}.inst_level_strict_acc", "Instruction-level strict accuracy", "accuracy"),
    "inst_level_loose_acc": share(f"{HARNESS}.inst_level_loose_acc", "Instruction-level loose accuracy", "accuracy"),
    "rouge1": share(f"{HARNESS}.rouge1", "ROUGE-1", "rouge"),
    "rouge2": share(f"{HARNESS}.rouge2", "ROUGE-2", "rouge"),
    "rougeL": share(f"{HARNESS}.rougeL", "ROUGE-L", "rouge"),
    "rougeLsum": share(f"{HARNESS}.rougeLsum", "ROUGE-Lsum", "rouge"),
    "brier_score": share(f"{HARNESS}.brier_score", "Brier score", "brier_score"),
    "mcc": Metric(f"{HARNESS}.mcc", "Matthews correlation", "mcc", "coefficient", (-1.0, 1.0)),
    "bleu": Metric(f"{HARNESS}.bleu", "BLEU", "bleu", "points", (0.0, 100.0)),
    "chrf": Metric(f"{HARNESS}.chrf", "chrF", "chrf", "points", (0.0, 100.0)),
    "ter": Metric(f"{HARNESS}.ter", "TER", "ter", "points", (0.0, INFINITY)),
    "word_perplexity": Metric(f"{HARNESS}.word_perplexity", "Perplexity of words", "perplexity", "", (1.0, INFINITY)),
    "byte_perplexity": Metric(f"{HARNESS}.byte_perplexity", "Perplexity of bytes", "perplexity", "", (1.0, INFINITY)),
    "perplexity": Metric(f"{HARNESS}.perplexity", "Perplexity", "perplexity", "", (1.0, INFINITY)),
    "bits_per_byte": Metric(f"{HARNESS}.bits_per_byte", "Bits per byte", "bits_per_byte", "bits", (0.0, INFINITY)),
}
"""Metrics of the harness and of its tasks."""

OWN = {
    "acc_normalised": share(
        f"{PROJECT}.acc_normalised", "Accuracy by normalised text", "accuracy", "A second grader's accuracy."
    ),
    "disagree": share(
        f"{PROJECT}.disagree", "Graders disagree", "rate", "Share of answers that two graders differ on."
    ),
    "no_answer": share(f"{PROJECT}.no_answer", "No answer found", "rate", "Share of answers with nothing to grade."),
    "grader_failed": share(f"{PROJECT}.grader_failed", "Grader failed", "rate", "Share of answers left ungraded."),
    "truncated": share(
        f"{PROJECT}.truncated", "Truncated answers", "rate", "Share of answers that ended at their token limit."
    ),
    "length": own("length", "Generated tokens", "tokens", "tokens", "Tokens that all models generated per question."),
    "mentor_tokens": own(
        "mentor_tokens", "Mentor tokens", "tokens", "tokens", "Tokens that the mentor generated per question."
    ),
    "tflops": own(
        "tflops", "Cost of generated tokens", "compute", "TFLOPs", "2 x parameters x generated tokens per question."
    ),
    "mflops": own(
        "mflops", "Cost of generated tokens", "compute", "MFLOPs", "2 x parameters x generated tokens per question."
    ),
    "bill": own(
        "bill",
        "Cost of all tokens",
        "compute",
        "TFLOPs",
        "2 x parameters x every token that passed through a model per question: prompts, judging, generated and "
        "discarded ones.",
    ),
    "dollars": own("dollars", "Price per question", "cost", "usd", "What a question's calls cost in dollars."),
    "seconds": own(
        "seconds",
        "Seconds of calls per question",
        "latency",
        "s",
        "Wall-clock time of a question's calls, waiting for others of a batch included.",
    ),
    "stage": Metric(
        f"{PROJECT}.stage",
        "Stage that was answered from",
        "effort",
        "stage",
        (-1.0, INFINITY),
        "0 is the question alone, each higher stage has more of the mentor's text, -1 is the mentor's own answer.",
    ),
}
"""Metrics of this package's tasks and of its ledger, as docs/numbers.md explains them."""

PASS_AT_K = re.compile(r"pass@(\d+)")


def metric(name: str) -> Metric:
    """Return what a metric is; one that is not known has neither a unit nor bounds.

    Examples
    --------
    >>> metric("acc").id, metric("pass@10").id, metric("stars").id, metric("stars").bounds
    ('accuracy', 'pass-at-10', 'lm-evaluation-harness.stars', None)
    """
    found = PASS_AT_K.fullmatch(name)
    if found:
        return share(f"pass-at-{found[1]}", f"pass@{found[1]}", "pass_rate")
    return GENERAL.get(name) or OWN.get(name) or Metric(f"{HARNESS}.{name}", name, "other", "", None)
