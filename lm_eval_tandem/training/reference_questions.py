"""`lm-eval-tandem collect --reference`: how the models of an ensemble read the questions of a training task.

The harness makes the prompts, with few-shot examples and chat templates as it would for answers; nothing is answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

from lm_eval_tandem.cascade.prompts import Question
from lm_eval_tandem.engines import registry
from lm_eval_tandem.ensembles.reference_file import check_replaceable
from lm_eval_tandem.ensembles.selection import CONFIDENT
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness.ensemble_model import EnsembleLM
from lm_eval_tandem.harness.ensemble_settings import EnsembleSettings, models_alone
from lm_eval_tandem.harness.requests import tasks_of
from lm_eval_tandem.training.collect import check_limit, check_tasks, make_folder, task_manager
from lm_eval_tandem.training.reference import collect_reference

NAME = "reference.json"


class QuestionsOnly(EnsembleLM):
    """Keeps the questions that the harness asks, and answers none; its models have to report confidence.

    Parameters
    ----------
    file, description
        What `check_replaceable` has to know before the models are loaded.
    **arguments
        Of the ensemble.
    """

    def __init__(self, file: Path, description: Mapping[str, Any], **arguments: Any) -> None:
        self._file, self._description = file, description
        super().__init__(**models_alone(arguments), aggregation="vote")
        self.questions: list[Question] = []

    def _read(self, arguments: Mapping[str, Any]) -> EnsembleSettings:
        settings = super()._read(arguments)
        for name, role in settings.roles.items():
            registry.check_view(CONFIDENT, role.backend, f"collect --reference of {name}")
        check_replaceable(self._file, [role.label for role in settings.roles.values()], self._description)
        return settings

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Keep the questions; every answer is empty."""
        self.questions += [task.question for task in tasks_of(requests, self.max_answer_tokens, self.settings.seed)]
        return [""] * len(requests)


def collect_from_tasks(
    arguments: dict[str, Any],
    tasks: Sequence[str],
    output: Path,
    include: Sequence[str],
    *,
    limit: float | None = None,
    **evaluation: Any,
) -> Path:
    """Measure the questions of some tasks with every model of an ensemble, and write the reference file.

    Parameters
    ----------
    arguments
        As in `--model_args` of `--model ensemble`, without what belongs to strategies.
    tasks
        Names of the training tasks.
    output
        The folder for reference.json.
    include
        Folders with further task files.
    limit
        Questions per task, or a share of them below 1; None for all.
    **evaluation
        Further arguments of the harness's `simple_evaluate`, such as apply_chat_template.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ArgumentError
        An argument cannot work.
    """
    from lm_eval import simple_evaluate

    for name in ("selection", "aggregation"):
        if name in arguments:
            raise ArgumentError(f"collect --reference sets {name} itself; leave {name}={arguments[name]} out.")
    check_limit(limit)
    manager = task_manager(tasks, include)
    check_tasks(tasks, manager)
    make_folder(output)
    description: dict[str, Any] = {"tasks": list(tasks)}
    lm = QuestionsOnly(output / NAME, description, **arguments)
    try:
        simple_evaluate(model=lm, tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=0, **evaluation)
        engines = {lm.settings.roles[name].label: engine for name, engine in lm.engines.items()}
        description["questions"] = len(lm.questions)
        check_replaceable(output / NAME, engines, description)
        collect_reference(engines, lm.questions, output / NAME, description)
    finally:
        lm.close()
    return output / NAME
