"""The Hugging Face Hub: a model repository of a cascade, ready to push.

It holds the card (`hub_card`), the drawings of the trade-off, the classifier's folder, a configuration
(`hub_configuration`), checksums of both, and a file in .eval_results for each benchmark that is registered on the Hub
(`hub_eval_results`). `lm_eval --model tandem --model_args classifier=hub:org/name@COMMIT` loads the classifier from it
(`judge.repository`). What a repository is made of is read by `hub_cascade`; `hub_registry` has the Hub's own names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.submissions.hub_registry import LICENSES
from lm_eval_tandem.whole_files import replacing

if TYPE_CHECKING:
    from lm_eval_tandem.submissions.hub_cascade import PublishedCascade
    from lm_eval_tandem.submissions.redaction import Redaction

HELP = "a model repository of the cascade for the Hugging Face Hub, with .eval_results for registered benchmarks"
CARD = "README.md"
CONFIG = (
    *("format_version", "schema", "features", "model", "hidden", "log_features", "probe", "adapter", "training"),
    *("stages", "thresholds", "policy_thresholds", "pair", "fitted_on", "recipe", "sha256", "versions"),
)
"""Entries of a classifier's config.json that go out, as `artefact_config.describe` makes them."""
FITTED_ON = (
    *("questions", "objective", "cost_unit", "inputs", "model", "labels", "tasks", "per", "report"),
    *("efforts", "insights", "guidance", "prompts", "apply_chat_template"),
)
"""Entries of its fitted_on that go out, as `fit` makes them."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this format."""
    parser.add_argument("--repository", required=True, metavar="ORG/NAME", help="the repository's id on the Hub")
    parser.add_argument(
        "--license", required=True, metavar="ID", help="licence of the repository's own files, as the Hub names it"
    )
    parser.add_argument(
        "--base_models",
        metavar="ORG/MENTOR,ORG/INTERN",
        help="the models' ids on the Hub, where the runs name folders or files; none for one that is not there",
    )
    parser.add_argument("--classifier", help="name or folder (default: the cascade's, found below the results)")
    parser.add_argument("--metric", help="the grade to report, NAME or NAME,FILTER (default: the task's first)")


def export(given: argparse.Namespace) -> list[str]:
    """Write the repository's folder and return what it lacks and how it is pushed."""
    from lm_eval_tandem.submissions import hub_cascade
    from lm_eval_tandem.submissions.redaction import Redaction

    if not hub_cascade.is_repository_id(given.repository):
        raise ArgumentError(
            f"--repository {given.repository} is no id of the Hub; give account and name, as in org/name, of letters, "
            "digits and . _ - alone."
        )
    if given.license not in LICENSES:
        raise ArgumentError(
            f"--license {given.license} is no licence that the Hub knows; give one such as apache-2.0 or mit, of "
            "https://huggingface.co/docs/hub/repositories-licenses (not other, which needs a text of its own)."
        )
    check_folder(given.output)
    cascade = hub_cascade.read(given.results, given.classifier, given.metric, given.base_models)
    check_output(given.output, cascade.judge.name)
    redaction = Redaction()
    files, lines = repository_files(cascade, given.repository, given.license, redaction)
    write(given.output, files)
    if redaction.replaced:
        lines.append(
            f"{redaction.replaced:,} texts held a key, or a path or name of a machine, which was replaced; see [key], "
            "[host] and … in the files."
        )
    return [f"{given.repository}: {len(files)} files in {given.output}", *lines, "", *next_steps(given)]


def check_folder(output: Path) -> None:
    """Refuse a file in the place of the folder."""
    if output.exists() and not output.is_dir():
        raise ArgumentError(f"--output {output} is a file; name a folder for the repository.")


def check_output(output: Path, classifier: str) -> None:
    """Refuse a folder in which another classifier lies, since a repository holds one."""
    from lm_eval_tandem.judge.repository import CLASSIFIERS

    others = [folder for folder in (output / CLASSIFIERS).glob("*") if folder.name != classifier]
    if others:
        raise ArgumentError(
            f"--output {output} holds the classifier {others[0].name} already, and a repository holds one; remove "
            f"{CLASSIFIERS}/{others[0].name} there, or name another folder."
        )


def repository_files(
    cascade: PublishedCascade, repository: str, license_id: str, redaction: Redaction
) -> tuple[dict[str, bytes], list[str]]:
    """The content of each file by its path in the repository, and lines on what the repository lacks.

    Parameters
    ----------
    cascade
        What is published.
    repository, license_id
        The repository's id and its licence.
    redaction
        Goes over every text.
    """
    from lm_eval_tandem.judge.repository import CHECKSUMS, CLASSIFIERS, CONFIGURATION, checksum_lines
    from lm_eval_tandem.reports.formats import svg
    from lm_eval_tandem.submissions import hub_card, hub_configuration, hub_eval_results

    configuration, left_out = hub_configuration.render(cascade, repository)
    results, lines = hub_eval_results.render(cascade, repository)
    loaded = {CONFIGURATION: redaction.text(configuration).encode()}
    own = f"{CLASSIFIERS}/{cascade.judge.name}"
    loaded |= {f"{own}/{name}": content for name, content in classifier_files(cascade, redaction).items()}
    texts = {CARD: str(hub_card.render(cascade, repository, license_id, left_out)), **results}
    texts |= {f"figures/{figure.name}.svg": svg.standalone(figure.svg) for figure in hub_card.figures(cascade)}
    files = {path: redaction.text(text).encode() for path, text in texts.items()}
    files |= loaded | {CHECKSUMS: checksum_lines(loaded).encode()}
    if left_out:
        lines.append(
            f"{CONFIGURATION} leaves out {', '.join(left_out)}, which name something on this machine; the card says so."
        )
    lines += [f"the {role}, {name}, gets no base_model: it has no id on the Hub." for role, name in nameless(cascade)]
    if cascade.own_tasks:
        lines.append(
            f"{' and '.join(cascade.own_tasks)}: own tasks, whose files the repository does not hold; the card and "
            f"{CONFIGURATION} say so, so publish them too, and write on the card where they are."
        )
    lines += cascade.notes
    if not hub_card.datasets(cascade):
        lines.append("the card names no data set: those of the tasks are not on the Hub.")
    return files, lines


def nameless(cascade: PublishedCascade) -> list[tuple[str, str]]:
    """Role and name of the models that have no id on the Hub."""
    return [(role, model.name) for role, model in cascade.models.items() if model.hub_id is None]


def classifier_files(cascade: PublishedCascade, redaction: Redaction) -> dict[str, bytes]:
    """The classifier's files by their paths in its folder; models are called as the configuration calls them.

    Only names change: the arrays are copied, and a LoRA adapter's configuration, which also names the intern, gets a
    new checksum.
    """
    from lm_eval_tandem.judge.artefact import OUT_OF_FOLD
    from lm_eval_tandem.judge.artefact_config import ADAPTER, checksum
    from lm_eval_tandem.submissions import hub_card

    folder = cascade.folder
    config = {name: value for name, value in cascade.judge.config.items() if name in CONFIG}
    config["fitted_on"] = {name: value for name, value in config["fitted_on"].items() if name in FITTED_ON}
    config["pair"] = {role: label(model) for role, model in cascade.models.items()}
    files = {"model.safetensors": (folder / "model.safetensors").read_bytes()}
    if (folder / OUT_OF_FOLD).is_file():
        files[OUT_OF_FOLD] = (folder / OUT_OF_FOLD).read_bytes()
    for name in config.get(ADAPTER) or {}:
        content = (folder / ADAPTER / name).read_bytes()
        if name.endswith(".json"):
            described = {**json.loads(content), "base_model_name_or_path": cascade.intern.name}
            content = to_json(redaction(described))
        config[ADAPTER] = {**config[ADAPTER], name: checksum(content)}
        files[f"{ADAPTER}/{name}"] = content
    text = hub_card.classifier_text(cascade)
    if text:
        files[CARD] = redaction.text(text).encode()
    return files | {"config.json": to_json(redaction(config))}


def label(model: Any) -> str:
    """How a run with the configuration calls a model, so that it knows the classifier as that of its pair."""
    return str(model.label if model.bundled else model.argument)


def to_json(value: Mapping[str, Any]) -> bytes:
    """A mapping as the file of a classifier."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write(output: Path, files: Mapping[str, bytes]) -> None:
    """Write files below a folder; each takes its name in one step.

    Raises
    ------
    ArgumentError
        One cannot be written.
    """
    try:
        for name, content in files.items():
            with replacing(output / name) as unfinished:
                unfinished.write_bytes(content)
    except OSError as error:
        raise ArgumentError(f"--output {output} cannot be written ({error.strerror}); give another folder.") from None


def next_steps(given: argparse.Namespace) -> list[str]:
    """How the folder is pushed, and how a run names what was pushed."""
    return [
        "Nothing was uploaded. Read the card, then push the folder with your own account:",
        f"  hf upload {given.repository} {given.output} .",
        "The push prints its commit, which a run names so:",
        f"  lm_eval --model tandem --model_args classifier=hub:{given.repository}@COMMIT,…",
    ]
