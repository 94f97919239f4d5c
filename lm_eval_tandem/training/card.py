"""The card of a classifier: what it was fitted on and how well it judges, as the README.md of its folder."""

from __future__ import annotations

from typing import Any

INPUT_DESCRIPTIONS = {
    "statistics": "the intern's perplexity and entropy on question and insights",
    "probe": "the entropies of the first tokens of the intern's answer",
    "statistics+probe": "the intern's perplexity and entropy on question, insights and the first tokens of its answer",
    "hidden": "the intern's last-layer hidden state after question and insights",
    "lora": "the last-layer hidden state, after question and insights, of the intern finetuned for this with LoRA",
}
"""What a judge reads, by the value of `fit --inputs`."""


def write(name: str, description: dict[str, Any], report: dict[str, Any]) -> str:
    """The Markdown text of the card.

    Parameters
    ----------
    name
        The name of the classifier's folder.
    description
        Of the collecting run, as `collected_file.read` returns it.
    report
        Of the fit (`fit.fit_sufficiency`).
    """
    lines = [*_facts(name, description, report), "", *_stages(report), "", *_calibration(report["calibration"])]
    return "\n".join(lines) + "\n"


def _facts(name: str, description: dict[str, Any], report: dict[str, Any]) -> list[str]:
    cascade, high = report["cascade"], report["always_high"]
    return [
        f"# Sufficiency classifier `{name}`",
        "",
        f"Predicts from {INPUT_DESCRIPTIONS[report['inputs']]} whether `{description['intern']['model']}` will answer "
        f"correctly without more insight from `{description['mentor']['model']}`.",
        "",
        f"- fitted on {report['questions']} questions of {', '.join(description['tasks'])}, "
        f"efforts {':'.join(map(str, description['efforts']))} mentor tokens, insights {description['insights']}, "
        f"guidance {description['guidance']}",
        f"- recipe `{report['recipe']}`, inputs {report['inputs']}, model {report['model']}, "
        f"labels {report['labels']}, objective `{report['objective']}`, seed {report['seed']}",
        f"- {_probe(report['probe'])}",
        f"- thresholds {_limits(report['thresholds'])} (the question alone first)"
        + "".join(f"; policy={name} {_limits(values)}" for name, values in report["policy_thresholds"].items()),
        f"- lm-eval-tandem {description['version']}",
        "",
        f"Out of sample, on {report['questions_out_of_sample']} of these questions: cascade "
        f"{100 * cascade['accuracy']:.1f} % at {cascade['cost']:.3g} {_unit(report)} a question, "
        f"always-high {100 * high['accuracy']:.1f} % at {high['cost']:.3g}.",
    ]


def _limits(thresholds: list[float]) -> str:
    return ":".join(f"{value:g}" for value in thresholds)


def _unit(report: dict[str, Any]) -> str:
    unit: str = report["cost_unit"]
    return f"{unit} (Eq. 12)" if unit == "TFLOPs" else unit


def _probe(probe: dict[str, Any] | None) -> str:
    if probe is None:
        return "no probe of the answer"
    limit = probe["max_entropy"]
    ends = "" if limit is None else f", or until one has more than {limit:g} nats of entropy"
    return f"the intern generates up to {probe['tokens']} tokens of its answer before it is judged{ends}"


def _stages(report: dict[str, Any]) -> list[str]:
    lines = [
        "| stage | intern right % | precision | recall | F1 | AUC | answered here % |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage in report["stages"]:
        right = None if stage["share_correct"] is None else 100 * stage["share_correct"]
        measured = [_number(right, 1), *(_number(stage[name], 3) for name in ("precision", "recall", "f1", "auc"))]
        lines.append(f"| {stage['stage']} | {' | '.join(measured)} | {100 * stage['share_answered']:.1f} |")
    return lines


def _number(value: float | None, digits: int) -> str:
    """A number, or nothing where there was nothing to measure."""
    return "" if value is None else f"{value:.{digits}f}"


def _calibration(calibration: dict[str, Any]) -> list[str]:
    lines = [
        f"Calibration out of sample, all stages: Brier score {calibration['brier']:.4f}, "
        f"expected error {calibration['ece']:.4f}.",
        "",
        "| scores | answers | mean score | right |",
        "|---|---|---|---|",
    ]
    for part in calibration["bins"]:
        lines.append(
            f"| {part['from']:.1f} to {part['to']:.1f} | {part['count']} | {part['mean_score']:.3f} "
            f"| {part['share_correct']:.3f} |"
        )
    return lines
