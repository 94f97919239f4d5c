"""The card of a classifier: what it was fitted on and how well it judges, in Markdown."""

from __future__ import annotations

from typing import Any

SEEN = {
    "statistics": "the intern's perplexity and entropy on question and insights",
    "probe": "how sure the intern is of the answer that it begins",
    "statistics+probe": "the intern's perplexity and entropy on question, insights and the answer that it begins",
    "hidden": "the intern's last-layer hidden state after question and insights",
    "lora": "the last-layer hidden state, after question and insights, of the intern finetuned for this with LoRA",
}
"""What a judge goes by, per inputs of `fit`."""


def write(name: str, description: dict[str, Any], report: dict[str, Any]) -> str:
    """The README of an artefact, from the description of the collecting run and the report of the fit."""
    cascade, high = report["cascade"], report["always_high"]
    probe = "no probe of the answer"
    if report["probe"] is not None:
        limit = report["probe"]["max_entropy"]
        ends = "" if limit is None else f", or a token with more than {limit:g} nats of entropy"
        probe = f"the intern begins its answer before it is judged: up to {report['probe']['tokens']} tokens{ends}"
    lines = [
        f"# Sufficiency classifier `{name}`",
        "",
        f"Says from {SEEN[report['inputs']]} whether "
        f"`{description['intern']['model']}` now knows enough to answer without more from "
        f"`{description['mentor']['model']}`.",
        "",
        f"- fitted on {report['questions']} questions of {', '.join(description['tasks'])}, "
        f"efforts {':'.join(map(str, description['efforts']))} mentor tokens, insights {description['insights']}, "
        f"guidance {description['guidance']}",
        f"- recipe `{report['recipe']}`, inputs {report['inputs']}, model {report['model']}, "
        f"labels {report['labels']}, objective `{report['objective']}`, seed {report['seed']}",
        f"- {probe}",
        f"- thresholds {':'.join(f'{value:g}' for value in report['thresholds'])} (the question alone first)",
        f"- lm-eval-tandem {description['version']}",
        "",
        f"Out of sample, on {report['questions_out_of_sample']} of these questions: cascade "
        f"{100 * cascade['accuracy']:.1f} % at {cascade['cost']:.3g} TFLOPs a question (Eq. 12), "
        f"always-high {100 * high['accuracy']:.1f} % at {high['cost']:.3g}.",
        "",
        "| stage | intern right % | precision | recall | F1 | AUC | answered here % |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage in report["stages"]:
        auc = "" if stage["auc"] is None else f"{stage['auc']:.3f}"
        lines.append(
            f"| {stage['stage']} | {100 * stage['share_correct']:.1f} | {stage['precision']:.3f} "
            f"| {stage['recall']:.3f} | {stage['f1']:.3f} | {auc} | {100 * stage['share_answered']:.1f} |"
        )
    found = report["calibration"]
    lines += [
        "",
        f"Calibration out of sample, all stages: Brier score {found['brier']:.4f}, expected error {found['ece']:.4f}.",
        "",
        "| scores | answers | mean score | right |",
        "|---|---|---|---|",
    ]
    for part in found["bins"]:
        lines.append(
            f"| {part['from']:.1f} to {part['to']:.1f} | {part['count']} | {part['mean_score']:.3f} "
            f"| {part['share_correct']:.3f} |"
        )
    return "\n".join(lines) + "\n"
