"""The cascade that a model repository is made of: its runs among those given, its classifier, and its models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval_tandem import _paths
from lm_eval_tandem.errors import ArgumentError, ClassifierError
from lm_eval_tandem.judge import artefact
from lm_eval_tandem.judge.sufficiency import Sufficiency
from lm_eval_tandem.reports.sources import recorded_runs, report_data, task_files
from lm_eval_tandem.reports.sources.classifiers import has_checksum
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.labels import model_name
from lm_eval_tandem.reports.sources.recorded_runs import RecordedRun
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.submissions import sources
from lm_eval_tandem.submissions.models import BUNDLED, is_hub_id
from lm_eval_tandem.submissions.sources import SubmittedRun
from lm_eval_tandem.submissions.task_results import TaskResults

ROLES = ("mentor", "intern")
LOCAL_ENGINES = ("hf", "vllm")
"""Engines that load a model from a folder or a hub id."""
GGUF_SUFFIX = ".gguf"
NONE = "none"
"""What --base_models has for a model that is on no hub."""
REPOSITORY_ID = re.compile(r"(?=.{1,96}$)[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?<![.-])", re.ASCII)
"""The id of a repository as the hub's library checks it, but for two characters in a row that it also forbids."""


@dataclass(frozen=True)
class Model:
    """One of the two models.

    Attributes
    ----------
    label
        How results call it: hub id, folder, file, or its name at a server.
    hub_id
        Its id on the Hub; None for one that is not there.
    argument
        What names it in a configuration that is to work anywhere: `pair`, its hub id, the name of a GGUF file, or its
        name at a server.
    """

    label: str
    hub_id: str | None
    argument: str

    @property
    def name(self) -> str:
        """What the card calls it."""
        return self.hub_id or (self.label if self.bundled else model_name(self.label))

    @property
    def bundled(self) -> bool:
        """Whether it ships with the package, and so is on no hub."""
        return bool(BUNDLED.fullmatch(self.label))


@dataclass(frozen=True)
class PublishedCascade:
    """What a repository is made of.

    Attributes
    ----------
    folder, judge
        The classifier's folder, and the classifier.
    data
        What reports are made from, with the published cascade as the only cascade of each comparison.
    runs
        The results file of the cascade's run on each task.
    mentor, intern
        The models.
    """

    folder: Path
    judge: Sufficiency
    data: ReportData
    runs: tuple[tuple[SubmittedRun, TaskResults], ...]
    mentor: Model
    intern: Model

    @property
    def comparisons(self) -> Sequence[Comparison]:
        """The domains that the cascade was run on, each with the runs of its pair."""
        return self.data.comparisons

    @property
    def models(self) -> dict[str, Model]:
        """Both models by role."""
        return {"mentor": self.mentor, "intern": self.intern}

    @property
    def notes(self) -> list[str]:
        """What a user is told: which runs were left out for repetitions, and what of the ledgers was checked."""
        checked = dict.fromkeys(f"{run.name}: {run.checked}." for run, _ in self.runs if run.checked)
        return [*[left.sentence() for left in self.data.left_out], *checked]

    @property
    def partly_asked(self) -> list[str]:
        """The tasks of which the run asked some questions alone, and how many: "60 of 1,000 questions of TASK"."""
        return [f"{task.asked} of {task.name}" for _, task in self.runs if task.asked]

    @property
    def own_tasks(self) -> list[str]:
        """The tasks whose files neither this package nor the harness has."""
        return sorted({task.name for _, task in self.runs if task_files.origin(task.config) == task_files.OWN})

    @property
    def run(self) -> SubmittedRun:
        """The results file whose settings the configuration repeats: the newest."""
        return max((run for run, _ in self.runs), key=lambda run: run.file.name)


def read(
    folders: Sequence[Path], classifier: str | None = None, metric: str | None = None, base_models: str | None = None
) -> PublishedCascade:
    """Read the cascade to publish from results.

    Parameters
    ----------
    folders
        Folders that lm_eval got as --output_path, and folders that hold the runs' ledgers.
    classifier
        Folder of the classifier, or the name of one that ships; None for the only one that is found.
    metric
        The metric to report, NAME or NAME,FILTER; None for each task's first.
    base_models
        MENTOR,INTERN: the models' ids on the Hub, or `none`; None for those of the runs.

    Raises
    ------
    ArgumentError, ClassifierError
        There is no such cascade, several, or one whose files do not fit together.
    """
    ids = None if base_models is None else hub_ids(base_models)
    chosen = None if classifier is None else folder_of(classifier)
    if chosen is not None:
        artefact.load(chosen)  # refuses what is none, before all runs are read
    check_models(recorded_runs.read(sources.results_files(folders)), ids)
    submitted = sources.read(folders, metric)
    data = report_data.read(folders, metric)
    folder = chosen or find_folder(data)
    judge = artefact.load(folder)
    comparisons = [shown for comparison in data.comparisons if (shown := with_one_cascade(comparison, judge))]
    if not comparisons:
        raise ArgumentError(
            f"none of the runs is a cascade with the classifier {judge.name} (the checksums of its arrays and of the "
            "runs' classifiers differ); add the folder of its runs, or give another --classifier."
        )
    cascade = comparisons[0].cascades[0]
    if len({run_models(one.cascades[0].description) for one in comparisons}) > 1:
        raise ArgumentError(
            f"the classifier {judge.name} judged several pairs in these runs; give the folders of one pair alone."
        )
    mentor, intern = models_of(cascade.description, ids)
    check_pair(judge, mentor, intern)
    names = f"{model_name(mentor.name)} + {model_name(intern.name)}"
    if not (mentor.bundled and intern.bundled):
        comparisons = [replace(comparison, pair=names) for comparison in comparisons]
    published = [one.cascades[0] for one in comparisons]
    return PublishedCascade(
        folder=folder,
        judge=judge,
        data=replace(data, comparisons=comparisons, classifier=judge, runs=published),
        runs=tuple(files_of(submitted, published)),
        mentor=mentor,
        intern=intern,
    )


def folder_of(classifier: str) -> Path:
    """The folder of a classifier that was named on the command line."""
    shipped = _paths.classifiers() / classifier
    return shipped if shipped.is_dir() else Path(classifier).expanduser()


def find_folder(data: ReportData) -> Path:
    """The folder of the classifier of the main cascades, where it ships or lies below the results.

    Raises
    ------
    ArgumentError
        There is no cascade, or none or several of the classifiers are found.
    """
    cascades = [cascade for comparison in data.comparisons if (cascade := comparison.cascade) is not None]
    if not cascades:
        raise ArgumentError(
            "the results hold no run of policy=cascade, and a model repository is that of a cascade; add the folder "
            "of such a run."
        )
    below = sorted({file.parent for folder in data.folders for file in folder.rglob("config.json")})
    found: dict[str, Path] = {}
    for cascade in cascades:
        checksum, name = cascade.classifier_facts.get("sha256"), str(cascade.description.get("classifier"))
        for candidate in (_paths.classifiers() / name, *below):
            if checksum and candidate.name == name and has_checksum(candidate / "config.json", checksum):
                found.setdefault(checksum, candidate)
    if len(found) == 1:
        return next(iter(found.values()))
    names = ", ".join(folder.name for folder in found.values()) or "none"
    raise ArgumentError(
        f"the classifier to publish is not clear: of those that the cascades ran with, {names} "
        f"{'were' if len(found) > 1 else 'was'} found below the results; name one with --classifier FOLDER."
    )


def with_one_cascade(comparison: Comparison, judge: Sufficiency) -> Comparison | None:
    """The comparison with the cascade of a classifier as its only one; None if it has none.

    Of several with the classifier's checksum it is the one that has its name, and its own thresholds.
    """

    def distance(run: Run) -> tuple[bool, bool]:
        return (
            run.description.get("classifier") != judge.name,
            list(run.description.get("thresholds") or ()) != list(judge.thresholds),
        )

    same = [run for run in comparison.cascades if run.classifier_facts.get("sha256") == judge.config["sha256"]]
    if not same:
        return None
    published = min(same, key=distance)
    runs = [run for run in comparison.runs if run.policy != "cascade" or run is published]
    return replace(comparison, runs=tuple(runs))


def run_models(description: Mapping[str, Any]) -> tuple[str, ...]:
    """What the models of a cascade's run are called without their folders, which may move; the mentor first."""
    return tuple(model_name(str(description[role]["model"])) for role in ROLES)


def files_of(submitted: Sequence[SubmittedRun], published: Sequence[Run]) -> list[tuple[SubmittedRun, TaskResults]]:
    """The results files and tasks of the published runs; those of a group's tasks for a run on the group."""
    identities = {run.identity for run in published}
    questions = {question for run in published for question in run.questions}
    return [
        (run, task)
        for run in submitted
        for task in run.tasks
        if task.run.identity in identities and set(task.run.questions) <= questions
    ]


def hub_ids(base_models: str) -> tuple[str, str]:
    """The ids of mentor and intern on the Hub, or `NONE`, of --base_models.

    Raises
    ------
    ArgumentError
        It is not two ids.
    """
    given = [text.strip() for text in base_models.split(",")]
    if len(given) != 2 or not all(text == NONE or is_repository_id(text) for text in given):
        raise ArgumentError(
            f"--base_models {base_models} has to be two ids of the Hub, org/mentor,org/intern, the mentor first; write "
            f"{NONE} for a model that is not there."
        )
    return given[0], given[1]


def check_models(recorded: Sequence[RecordedRun], ids: tuple[str, str] | None) -> None:
    """Refuse, before samples are read, ids that do not fit the models of the cascades, where all have the same ones."""
    cascades = [run.description for run in recorded if run.description.get("policy") == "cascade"]
    if len({run_models(description) for description in cascades}) == 1:
        models_of(cascades[0], ids)


def models_of(description: Mapping[str, Any], ids: tuple[str, str] | None) -> tuple[Model, Model]:
    """Mentor and intern of a cascade's run.

    Parameters
    ----------
    description
        What the run recorded about itself.
    ids
        What `hub_ids` returned; None where nothing was given.

    Raises
    ------
    ArgumentError
        The id of one on the Hub is not known, or it ships with this package and is on no hub.
    """
    found = []
    for place, role in enumerate(ROLES):
        facts: dict[str, Any] = description[role]
        label, engine = str(facts["model"]), str(facts.get("engine"))
        if ids is not None and ids[place] != NONE and BUNDLED.fullmatch(label):
            raise ArgumentError(
                f"--base_models {','.join(ids)}: the {role} of these runs is {label}, which ships with lm-eval-tandem, "
                f"and runs with the repository's files would load that one; leave --base_models out, or write {NONE} "
                "for it."
            )
        if ids is not None:
            hub_id = None if ids[place] == NONE else ids[place]
        elif BUNDLED.fullmatch(label):
            hub_id = None
        elif is_hub_id(label) and is_repository_id(label):
            hub_id = label
        else:
            raise ArgumentError(
                f"the {role} of these runs is {model_name(label)}, which is no id of the Hub; give both ids with "
                f"--base_models org/mentor,org/intern, with {NONE} for a model that is not there."
            )
        found.append(Model(label, hub_id, argument_of(label, engine, hub_id)))
    return found[0], found[1]


def is_repository_id(text: str) -> bool:
    """Whether a text can be the id of a repository on the Hub, org/name."""
    return bool(REPOSITORY_ID.fullmatch(text)) and "--" not in text and ".." not in text and not text.endswith(".git")


def argument_of(label: str, engine: str, hub_id: str | None) -> str:
    """What names a model in a configuration that is to work anywhere (`Model.argument`)."""
    if BUNDLED.fullmatch(label):
        return "pair"
    if label.endswith(GGUF_SUFFIX) or engine in LOCAL_ENGINES:
        return hub_id if hub_id is not None and not label.endswith(GGUF_SUFFIX) else model_name(label)
    return label


def check_pair(judge: Sufficiency, mentor: Model, intern: Model) -> None:
    """Refuse a classifier that was fitted on another pair than the runs have."""
    fitted = [model_name(judge.pair[role]) for role in ROLES]
    ours = [model_name(mentor.label), model_name(intern.label)]
    if fitted != ours:
        raise ClassifierError(
            f"the classifier {judge.name} was fitted on the pair {' and '.join(fitted)}, and these runs are of "
            f"{' and '.join(ours)}; publish a classifier of this pair."
        )
