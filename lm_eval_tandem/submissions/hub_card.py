"""README.md of a model repository: the card that its page on the Hugging Face Hub shows.

The front matter has no `model-index`: `.eval_results` has replaced it, and only that feeds leaderboards, so a second
copy of the same values could only come to differ. `base_model_relation` is one of adapter, merge, quantized and
finetune. Of a list of base models without one the Hub assumes a merge of their weights; `adapter` is nearest to what a
classifier is: a small part of its own beside models that stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from lm_eval_tandem import __version__
from lm_eval_tandem.cascade.prompts import SETTING
from lm_eval_tandem.judge.repository import CHECKSUMS, CLASSIFIERS, CONFIGURATION, PREFIX
from lm_eval_tandem.reports.formats.markdown import table_lines
from lm_eval_tandem.reports.sections import accuracy, trade_off
from lm_eval_tandem.reports.sections.environment import environment
from lm_eval_tandem.reports.sections.headlines import main_results
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.table import Figure, Table
from lm_eval_tandem.submissions import hub_configuration
from lm_eval_tandem.submissions.hub_cascade import PublishedCascade
from lm_eval_tandem.submissions.hub_registry import METRICS
from lm_eval_tandem.submissions.models import is_hub_id
from lm_eval_tandem.training import card as classifier_card

PAPER = "https://arxiv.org/abs/2604.23623"
TAGS = ("lm-evaluation-harness", "tandem", "cascade", "model-routing")
COLUMNS = (
    *("policy", "accuracy %", "length (tokens)", "mentor tokens", "cost (", "cost / mentor %"),
    *("whole bill / mentor %", "whole bill ("),
)
"""Beginnings of the headings of the policies table that the card shows."""
UNKNOWN = "unknown"


def front_matter(cascade: PublishedCascade, license_id: str) -> ModelCardData:
    """The card's front matter.

    Parameters
    ----------
    cascade
        What is published.
    license_id
        The Hub's name of the licence of the repository.
    """
    base_models = [model.hub_id for model in cascade.models.values() if model.hub_id is not None]
    metrics = [METRICS.get(task.run.metric, task.run.metric) for _, task in cascade.runs]
    return ModelCardData(
        license=license_id,
        library_name="lm-eval-tandem",
        pipeline_tag="text-generation",
        base_model=list(dict.fromkeys(base_models)) or None,
        base_model_relation="adapter" if base_models else None,
        datasets=datasets(cascade) or None,
        metrics=sorted(set(metrics)),
        tags=list(TAGS),
    )


def datasets(cascade: PublishedCascade) -> list[str]:
    """The data sets on the Hub that the tasks were made from; the task NAME_train is made from that of NAME."""
    found = {task.name: str(task.config.get("dataset_path") or "") for _, task in cascade.runs}
    return sorted({path for path in found.values() if is_hub_id(path)})


def figures(cascade: PublishedCascade) -> list[Figure]:
    """The trade-off of accuracy and cost on each domain, where the costs are known."""
    return [part for part in trade_off.trade_off(cascade.data) if isinstance(part, Figure)]


def policies_table(comparison: Comparison) -> Table:
    """The policies table of the report, with the columns that a card has room for."""
    whole = accuracy.policies_table(comparison)
    kept = [place for place, heading in enumerate(whole.columns) if heading.startswith(COLUMNS)]
    columns = tuple(whole.columns[place] for place in kept)
    return replace(whole, columns=columns, rows=tuple(tuple(row[place] for place in kept) for row in whole.rows))


def classifier_text(cascade: PublishedCascade) -> str:
    """The classifier's own card, with the models called as the repository calls them; "" where no fit recorded one."""
    config = cascade.judge.config
    fitted_on = config["fitted_on"]
    report: dict[str, Any] | None = fitted_on.get("report")
    if report is None:
        return ""
    description = {
        **{name: fitted_on[name] for name in ("tasks", *SETTING) if name in fitted_on},
        **{role: {"model": model.name} for role, model in cascade.models.items()},
        "version": (config.get("versions") or {}).get("lm-eval-tandem", UNKNOWN),
    }
    report = {"policy_thresholds": config.get("policy_thresholds") or {}, **report}
    return classifier_card.write(cascade.judge.name, description, report)


def render(cascade: PublishedCascade, repository: str, license_id: str, left_out: Sequence[str]) -> ModelCard:
    """The whole card.

    Parameters
    ----------
    cascade, repository, license_id
        What is published, the repository's id, and its licence.
    left_out
        Arguments of the run that the configuration cannot repeat.
    """
    lines = [
        f"# {repository.partition('/')[2]}",
        "",
        f"A cascade of two language models for lm-evaluation-harness: {linked(cascade, 'mentor')}, the mentor, guides "
        f"{linked(cascade, 'intern')}, the intern, and after each stage the classifier in this repository decides from "
        "the intern's own probabilities whether the intern can answer by itself. The method is that of "
        f"[Tandem]({PAPER}), as the package lm-eval-tandem runs it. The weights of the two models are not in this "
        "repository.",
        "",
        "## Results",
        "",
        *result_lines(cascade),
        *fit_lines(cascade),
        *run_lines(cascade, repository, left_out),
        *file_lines(cascade),
        *license_lines(cascade, license_id),
        "## Models and software of the runs",
        "",
        *[f"- {line}" for line in environment(cascade.data)],
    ]
    data = front_matter(cascade, license_id)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n")


def linked(cascade: PublishedCascade, role: str) -> str:
    """A model's name, with a link to its page where it has one."""
    model = cascade.models[role]
    if model.hub_id is not None:
        return f"[{model.hub_id}](https://huggingface.co/{model.hub_id})"
    return f"`{model.name}` (which ships with lm-eval-tandem)" if model.bundled else f"`{model.name}`"


def result_lines(cascade: PublishedCascade) -> list[str]:
    """Table and figure of each domain."""
    drawn = {figure.data.title: figure for figure in figures(cascade)}
    lines = []
    for comparison in cascade.comparisons:
        facts = main_results(comparison, comparison.cascades[0])
        table = policies_table(comparison)
        lines += [f"### {comparison.domain}", ""]
        lines += ["; ".join(f"**{value}** {meaning}" for value, meaning in facts) + ".", ""]
        lines += [*table_lines(replace(table, caption=CAPTION.format(questions=comparison.n_questions))), ""]
        if comparison.title in drawn:
            figure = drawn[comparison.title]
            lines += [f"![Accuracy against cost, {comparison.domain}](figures/{figure.name}.svg)", ""]
    return lines


CAPTION = (
    "Every policy on the same {questions:,} questions. `intern` and `mentor` answer alone; at `stage:N` every question "
    "gets the mentor's help up to stage N; the oracle knows the grades and is no policy. Cost is that of the paper's "
    "Eq. 12, per question; the whole bill counts the tokens of prompts and of discarded work too. Brackets hold 95 % "
    "intervals."
)
"""Above the table of a domain."""


def fit_lines(cascade: PublishedCascade) -> list[str]:
    """How the classifier was fitted: its own card, a heading lower."""
    text = classifier_text(cascade).splitlines()
    if not text:
        return []
    return ["## How it was fitted", "", f"Classifier `{cascade.judge.name}`.", *text[1:], ""]


def run_lines(cascade: PublishedCascade, repository: str, left_out: Sequence[str]) -> list[str]:
    """How to run it."""
    given = [f"{role}={cascade.models[role].argument}" for role in ("mentor", "intern")]
    lines = [
        "## How to run it",
        "",
        f"With lm-eval-tandem {__version__} or later (`pip install -c constraints.txt .` in a checkout of it):",
        "",
        "```sh",
        f"hf download {repository} {CONFIGURATION} --local-dir .",
        hub_configuration.command(cascade),
        "```",
        "",
        *([hub_configuration.own_tasks(cascade), ""] if cascade.own_tasks else []),
        "or with other arguments of lm_eval, on any task:",
        "",
        "```sh",
        f'lm_eval --model tandem --model_args "{",".join(given)},classifier={PREFIX}{repository}@COMMIT,…" --tasks …',
        "```",
        "",
        "COMMIT stands for the 40 digits of a commit of this repository. Without `@COMMIT` the newest classifier is "
        "taken, the run warns, and its results name the commit that it got. Offline, the local cache of the Hub is "
        "used, or the folder of a copy of this repository: `classifier=FOLDER`.",
        "",
    ]
    if cascade.partly_asked:
        lines += [
            f"The figures above are of {' and '.join(cascade.partly_asked)}. `{CONFIGURATION}` has no limit and asks "
            "all questions.",
            "",
        ]
    if left_out:
        lines += [
            f"The runs above also had the arguments {', '.join(f'`{name}`' for name in left_out)}, which name "
            "something on their machine and are not repeated here.",
            "",
        ]
    return lines


def file_lines(cascade: PublishedCascade) -> list[str]:
    """What the repository holds."""
    return [
        "## Files",
        "",
        f"- `{CLASSIFIERS}/{cascade.judge.name}/`: the classifier, as JSON and safetensors. Loading it runs no code.",
        f"- `{CONFIGURATION}`: the configuration of the cascade's run.",
        f"- `{CHECKSUMS}`: checksums of both; a run refuses a file that differs.",
        "- `figures/`: the drawings above.",
        "",
    ]


def license_lines(cascade: PublishedCascade, license_id: str) -> list[str]:
    """Whose licences hold for what."""
    others = " and ".join(linked(cascade, role) for role in ("mentor", "intern"))
    return [
        "## Licences",
        "",
        f"The files of this repository: `{license_id}`. The two models have licences of their own: {others}.",
        "",
    ]
