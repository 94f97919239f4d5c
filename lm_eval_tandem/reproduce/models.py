"""The content of a run's models, adapters and classifier, beside that of those that are here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval_tandem import _paths, pair
from lm_eval_tandem.engines.identity import content_of, hub_commit
from lm_eval_tandem.errors import TandemError, one_line
from lm_eval_tandem.harness.arguments import PAIR
from lm_eval_tandem.harness.run_report import checksum
from lm_eval_tandem.judge import repository
from lm_eval_tandem.judge.artefact_config import ADAPTER
from lm_eval_tandem.reports.sources.recorded_runs import RecordedRun
from lm_eval_tandem.reports.sources.runs import models_of
from lm_eval_tandem.reproduce.fact import Fact

BUNDLED = {f"{PAIR}/mentor": pair.MENTOR, f"{PAIR}/intern": pair.INTERN}
"""The folders of the bundled models by the names that results have for them."""
FITS = "build/results/classifiers/"
"""Where the repository's `make fits` puts the classifiers of the committed results."""
ADAPTERS_OF_HARNESS = ("peft", "delta")
"""Arguments of the harness's hf that name weights beside the model's; it records their commits."""


def of(run: RecordedRun) -> list[Fact]:
    """Return the content of each model and of its adapters: a checksum of the files, or the commit on a hub."""
    arguments, facts = run.arguments, []
    for role, recorded in models_of(run.description).items():
        name = str(recorded.get("model"))
        revision = str(arguments.get(f"{role}_revision") or arguments.get("revision") or "main")
        facts.append(weights(f"{role} {name}", f"model {name}", name, recorded, revision))
        for argument, adapter in (recorded.get("adapters") or {}).items():
            name = str(adapter.get("name"))
            facts.append(weights(f"{role} {argument} {name}", f"adapter {name}", name, adapter, revision))
    if not run.description and arguments.get("pretrained"):
        facts += models_of_harness(run)
    return facts


def models_of_harness(run: RecordedRun) -> list[Fact]:
    """Return the model of a run that is no tandem's, and its adapters: the harness records their commits for `hf`."""
    named = {"model": ("pretrained", run.config.get("model_sha"))}
    named |= {name: (name, run.config.get(f"{name}_sha")) for name in ADAPTERS_OF_HARNESS if run.arguments.get(name)}
    revision, facts = str(run.arguments.get("revision") or "main"), []
    for kind, (argument, commit) in named.items():
        name = str(run.arguments[argument])
        what = f"{'model' if kind == 'model' else 'adapter'} {name}"
        if commit:
            facts.append(on_hub(f"{kind} {name}", what, name, revision, str(commit)))
        else:
            is_missing = Path(name).is_absolute() and not Path(name).exists()
            facts.append(Fact(f"{kind} {name}", None, None, f"The {what} is not here." if is_missing else ""))
    return facts


def weights(label: str, what: str, name: str, recorded: Mapping[str, Any], revision: str) -> Fact:
    """Return the content of a model or an adapter.

    Parameters
    ----------
    label
        What the fact is called.
    what
        What a sentence calls the weights.
    name
        Their name in the results: a folder, a file, the name of a bundled model, an id of a hub, or one at a server.
    recorded
        What the results have of them: `sha256`, `commit`, or neither.
    revision
        The branch, tag or commit of a hub that was asked for.
    """
    if "commit" in recorded and "sha256" not in recorded:
        return on_hub(label, what, name, revision, str(recorded["commit"]))
    then = recorded.get("sha256")
    content = content_of(BUNDLED.get(name, Path(name))) or content_of(Path(name.partition("=")[2] or name))
    now = checksum(content)
    if then is not None and now is None:
        return Fact(label, then, None, f"The {what} is not here.")
    differs = then is not None and now != then
    return Fact(label, then, now, f"The files of the {what} are not those of the run." if differs else "")


def on_hub(label: str, what: str, name: str, revision: str, then: str) -> Fact:
    """Return the commit of weights of a hub; `then` is the one that was recorded, other parameters as for `weights`."""
    now = hub_commit(name, revision)
    differs = now is not None and now != then
    difference = f"The {what} had the commit {then} and has {now} here." if differs else ""
    return Fact(label, then, now, difference)


def classifier(run: RecordedRun) -> list[Fact]:
    """Return the weights of the classifier, its adapter, and its thresholds unless they were an argument."""
    described = run.description
    if "classifier" not in described:
        return []
    name, then = str(described["classifier"]), (described.get("judge") or {}).get("sha256")
    label = f"classifier {name}"
    try:
        folder = classifier_folder(run.arguments.get("classifier"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return [Fact(label, then, None, missing_classifier(run, name, then))]
    except (TandemError, OSError, ValueError) as error:
        return [Fact(label, then, None, f"The classifier {name} cannot be read here ({one_line(error)}).")]
    now = checksum(content_of(folder / "model.safetensors"))
    if then is not None and now != then:
        return [Fact(label, then, now, f"The classifier {name} has other weights here than in the run.")]
    adapter = (described.get("judge") or {}).get(ADAPTER)
    if adapter and {file: content_of(folder / ADAPTER / file) for file in adapter} != dict(adapter):
        return [Fact(label, then, now, f"The classifier {name} has another adapter here than in the run.")]
    thresholds = (config.get("policy_thresholds") or {}).get(described.get("policy"), config.get("thresholds"))
    if "thresholds" not in run.arguments and thresholds != described.get("thresholds"):
        sentence = f"The classifier {name} has the thresholds {thresholds} here and had {described.get('thresholds')}."
        return [Fact(label, then, now, sentence)]
    return [Fact(label, then, now)]


def missing_classifier(run: RecordedRun, name: str, checksum_then: str | None) -> str:
    """Return that a classifier is not here, which one it was, and how it comes here."""
    place = str(run.arguments.get("classifier") or PAIR)
    which = f" (SHA-256 of its weights: {checksum_then})" if checksum_then else ""
    tasks = ",".join((run.description.get("judge") or {}).get("tasks") or ())
    fitted = f"It was fitted on {tasks}; " if tasks else "With the same training questions "
    makers = "make fits, or collect and fit, make" if FITS in place else "lm-eval-tandem collect and fit make"
    return (
        f"The classifier {name}{which} is not here: there is no {place}. Put a copy of it there, or fit it again. "
        f"{fitted}{makers} one."
    )


def classifier_folder(argument: Any) -> Path:
    """Return the folder that the argument `classifier` names; without one that of the bundled pair."""
    chosen = str(argument or PAIR)
    shipped = _paths.classifiers() / chosen
    if re.fullmatch(r"\w[\w.-]*", chosen) and shipped.is_dir():
        return shipped
    return repository.find(repository.parse(chosen)).folder
