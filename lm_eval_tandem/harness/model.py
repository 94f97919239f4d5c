"""The model `tandem` of lm-evaluation-harness: the cascade behind the harness's own interface (`answering.py`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from lm_eval_tandem import _paths, ledger_file
from lm_eval_tandem.cascade.algorithm import Cascade
from lm_eval_tandem.cascade.policies import Policy
from lm_eval_tandem.cascade.prompts import TEMPLATE
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.engines import DEFAULT_VIEW, Engine, ScoringView, registry
from lm_eval_tandem.errors import ArgumentError, ClassifierError, EngineError
from lm_eval_tandem.event_loop import EventLoopThread
from lm_eval_tandem.harness import arguments as model_arguments
from lm_eval_tandem.harness import run_report
from lm_eval_tandem.harness.answering import AnsweringLM
from lm_eval_tandem.harness.requests import check_fits
from lm_eval_tandem.harness.settings import Given, Settings, check_one_policy, read_settings

if TYPE_CHECKING:
    from lm_eval_tandem.judge.artefact import Sufficiency

log = logging.getLogger(__name__)


class TandemLM(AnsweringLM):
    """`--model tandem`: the mentor writes insights, a judge decides when they suffice, the intern answers.

    Everything that the harness asks of one model besides answers (likelihoods, chat templates, tokenizer) goes to the
    role that `loglikelihood` names. The arguments are described in `harness/arguments.py`.

    Raises
    ------
    TandemError
        In one sentence, before a model is loaded where that is possible.
    """

    registered_name = "tandem"
    settings: Settings

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Self:
        """Make the model as the harness does, for a run of one policy; see `AnsweringLM.create_from_arg_obj`."""
        check_one_policy(arg_dict)
        check_kept(arg_dict)
        return super().create_from_arg_obj(arg_dict, additional_config)

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self._begin()
        self.settings = read_settings(arguments, registry.arguments)
        chosen = self.settings
        if chosen.ledger is not None:
            models = {name: role.label for name, role in chosen.roles.items() if role is not None}
            ledger_file.check_replaceable(chosen.ledger, str(chosen.policy), chosen.pair_name, models)
        self._classifier = self._load_classifier() if chosen.policy.needs_judge else None
        self.judge = self.judge_for(chosen.policy)
        view = DEFAULT_VIEW if self.judge is None else self.judge.view
        if self.judge is not None and chosen.intern is not None:
            registry.check_view(view, chosen.intern.backend, f"classifier={chosen.classifier}")
        registry.check(chosen.roles)
        with self.ranks.failing_together(), ExitStack() as opened:  # closed again where a later step fails
            self._open_store(opened)
            self._mentor = self._load_engine(chosen.mentor, opened) if chosen.mentor is not None else None
            self._intern = self._load_engine(chosen.intern, opened) if chosen.intern is not None else None
            self._check_intern(view)
            opened.pop_all()
        self.cascade = Cascade(
            mentor=self._with_store(self._mentor) if self._mentor is not None else None,
            intern=self._with_store(self._intern) if self._intern is not None else None,
            prompts=chosen.policy.prompts(chosen.prompts),
            policy=chosen.policy,
            efforts=chosen.policy.efforts(chosen.efforts),
            judge=self.judge,
            record_features=bool(chosen.recorded),
            record_prompts=chosen.recorded is True,
            record_insights=chosen.record_insights,
            prices={name: role.prices for name, role in chosen.roles.items() if role and role.prices},
            view=view,
            step_end=chosen.step_end,
        )
        self._loop = EventLoopThread()

    def use(self, policy: str) -> None:
        """Switch to another policy that needs no judge, with the same engines; the records start anew."""
        given = self.settings
        chosen = Policy.parse(policy, len(given.efforts))
        self.settings = replace(given, policy=chosen)
        prompts, efforts = chosen.prompts(given.prompts), chosen.efforts(given.efforts)
        self.cascade = replace(self.cascade, policy=chosen, prompts=prompts, efforts=efforts)
        self.records = []

    def record_hidden(self) -> None:
        """Let `record_features` include the intern's hidden states from now on.

        Raises
        ------
        ClassifierError
            The intern's engine does not report them.
        """
        assert self._intern is not None
        view = ScoringView(hidden=True)
        registry.prepare(self._intern, view, None, None, "collect --hidden")
        self.cascade = replace(self.cascade, view=view)

    def record_prompts(self) -> None:
        """Let `record_features` include the intern's statistics of its prompts from now on."""
        self.cascade = replace(self.cascade, record_prompts=True)

    def _check_intern(self, view: ScoringView) -> None:
        """Refuse an intern that cannot do what the judge needs, and load the judge's adapter into it."""
        if self._intern is None:
            return
        recorded, judge = self.settings.recorded, self.judge
        if (recorded is True or (judge is not None and judge.reads_prompt)) and self._intern.cannot_score:
            raise EngineError(self._intern.cannot_score)
        measured = recorded or (judge is not None and judge.probe is not None)
        if (measured or self.settings.policy.entropy is not None) and self._intern.cannot_measure:
            raise EngineError(self._intern.cannot_measure)
        if self.judge is not None:
            who = f"classifier={self.settings.classifier}"
            registry.prepare(self._intern, view, self.judge.width, self.judge.adapter, who)

    def judge_for(self, policy: Policy) -> Sufficiency | None:
        """The loaded judge with a policy's thresholds, or with those that were given; None where it needs none."""
        if self._classifier is None or not policy.needs_judge:
            return None
        if self.settings.thresholds is not None:
            return replace(self._classifier, thresholds=self.settings.thresholds)
        return self._classifier.for_policy(policy.name)

    def _load_classifier(self) -> Sufficiency:
        from lm_eval_tandem.judge import artefact  # imports scikit-learn, which only a judge needs

        chosen = self.settings
        if chosen.classifier is None:
            raise ClassifierError(
                f"policy={chosen.policy} needs a sufficiency classifier, and none is known for the pair "
                f"{chosen.pair_name}; fit one with `lm-eval-tandem collect` and `lm-eval-tandem fit` and give its "
                "folder as classifier=…, or use policy=stage:N, which needs none."
            )
        stages = len(chosen.efforts) + 1 if chosen.thresholds is None else None
        judge = artefact.load(chosen.classifier, stages=stages)
        assert chosen.mentor is not None
        assert chosen.intern is not None
        fitted = judge.pair.get("mentor"), judge.pair.get("intern")
        ours = chosen.mentor.label, chosen.intern.label
        if not all(map(_paths.same_path, fitted, ours)):
            log.warning(
                "classifier=%s was fitted on the pair %s, so its scores mean little for %s; fit one on this pair with "
                "`lm-eval-tandem collect` and `lm-eval-tandem fit`.",
                chosen.classifier,
                " and ".join(map(str, fitted)),
                " and ".join(ours),
            )
        self._warn_of_other_setting(judge)
        return judge

    def _warn_of_other_setting(self, judge: Sufficiency) -> None:
        """Warn where the classifier was fitted on insights of other lengths or words than those of this run."""
        ours = run_report.setting(self.settings)
        for name, fitted in judge.config["fitted_on"].items():
            if name in ours and fitted != ours[name]:
                log.warning(
                    "classifier=%s was fitted with %s=%s, and this run has %s, so its scores mean little; give "
                    "the same, or fit one on this setting.",
                    self.settings.classifier,
                    name,
                    as_argument(fitted),
                    as_argument(ours[name]),
                )

    @property
    def engines(self) -> dict[str, Engine | None]:
        """The engine of each role, without the store around it; None for a role that the policy does not need."""
        return {"mentor": self._mentor, "intern": self._intern}

    @property
    def answerer(self) -> Cascade:
        """The cascade."""
        return self.cascade

    @property
    def called(self) -> tuple[Engine, ...]:
        """The engines that the cascade calls."""
        return tuple(engine for engine in (self.cascade.mentor, self.cascade.intern) if engine is not None)

    @property
    def answering(self) -> Engine:
        """The engine of the role that `loglikelihood` names."""
        engine = self.engines[self.settings.loglikelihood]
        assert engine is not None
        return engine

    def check_fits(self, task: Task) -> int:
        """See `requests.check_fits`."""
        if self.judge is not None:
            self.compare_rendering(task)
        return check_fits(task, self.settings, self.engines)

    def _other_rendering(self, task: Task) -> str:
        """See `AnsweringLM._other_rendering`: otherwise than the questions on which the classifier was fitted."""
        assert self._classifier is not None
        as_chats, is_chat = self._classifier.config["fitted_on"].get(TEMPLATE), task.question.messages is not None
        if as_chats in (None, is_chat):
            return ""
        theirs, ours = ("in", "as plain text") if as_chats else ("without", "in one")
        return (
            f"classifier={self.settings.classifier} was fitted on questions {theirs} chat templates, and this one is "
            f"asked {ours}, so its scores mean little; ask in the same way, or fit one on this way to ask."
        )

    @property
    def description(self) -> dict[str, Any]:
        """What ran: pair, policy, efforts, thresholds, classifier, parameters, versions."""
        return run_report.description(self.settings, self.engines, self.judge)


def check_kept(given: Mapping[str, Any]) -> None:
    """Refuse `record_features` and `record_insights` in a run of the harness that writes no records.

    Raises
    ------
    ArgumentError
        There is no `ledger`.
    """
    kept = ("record_features", "record_insights")
    recorded = Given({name: given[name] for name in (*kept, "ledger") if given.get(name) is not None})
    for name in kept:
        if recorded[name] and recorded["ledger"] is None:
            raise ArgumentError(
                f"{name}={recorded[name]} has no effect without ledger=FILE, into which records are written; give a "
                "file, or leave it out."
            )


def as_argument(value: Any) -> str:
    """A value as it is written in `--model_args`."""
    return ":".join(map(str, value)) if isinstance(value, list) else str(value)


TandemLM.__doc__ = f"{TandemLM.__doc__}\n{model_arguments.docstring()}\n"
TandemLM.__signature__ = model_arguments.signature()  # type: ignore[attr-defined]
