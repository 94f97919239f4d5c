"""The names of models that the server answers under, and what answers under each.

`tandem` is the configured policy, `tandem/POLICY` any other that the loaded models and the loaded judge can do; nothing
is loaded for it. An ensemble has one name, `ensemble`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from lm_eval_tandem.cascade.policies import Policy
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.engines import Engine
from lm_eval_tandem.engines.tokenizer import LocalTokenizer
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness import requests
from lm_eval_tandem.harness.answering import AnsweringLM
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.harness.questions import Answerer
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.server.errors import RequestError
from lm_eval_tandem.server.measuring import MeasuringEngine
from lm_eval_tandem.server.role_engine import RoleEngine

TANDEM, ENSEMBLE = "tandem", "ensemble"
REMEMBERED = 64
"""Number of names whose offer is remembered."""
LONGEST_POLICY = 80
"""Largest number of characters of a policy in a name; a number of thousands of digits is no policy."""


@dataclass(frozen=True)
class Offer:
    """What answers under one name.

    Attributes
    ----------
    policy
        The policy or the ensemble's strategies, as in records.
    kind
        The same without numbers, of which there are only few: for metrics.
    has_intern
        Whether an intern takes part, who might answer alone.
    answerer
        Answers a question.
    check_fits
        The size of a question's prompt in tokens; raises ContextError where it does not fit.
    longest_answer
        The largest `max_tokens` of a question that fits.
    reader
        The model that reads prompts for `echo` with `logprobs`, and whose tokens a prompt's ids are.
    answer_tokens
        The tokens of the answer that a record is about.
    cannot_measure
        Why the answer's log-probabilities cannot be had, in a sentence; "" where they can.
    measured
        The answerer with an engine that keeps them, and that engine; None for an ensemble.
    """

    policy: str
    kind: str
    has_intern: bool
    answerer: Answerer
    check_fits: Callable[[Task], int]
    longest_answer: Callable[[Task], int]
    reader: Engine
    answer_tokens: Callable[[Record], int]
    cannot_measure: str
    measured: Callable[[], tuple[Answerer, MeasuringEngine]] | None = None


class Offers:
    """Everything that a loaded model can be asked for.

    Attributes
    ----------
    default
        The name of what was configured.
    names
        Those that are listed; `find` knows others, as `tandem/handoff:40`.
    descriptions
        Name and description of the policies that are listed.
    """

    def __init__(self, lm: AnsweringLM) -> None:
        self._lm = lm
        self.find = lru_cache(REMEMBERED)(self._find)
        self.default = TANDEM if isinstance(lm, TandemLM) else ENSEMBLE
        self.names = [self.default]
        self.descriptions: list[dict[str, str]] = []
        if isinstance(lm, TandemLM):
            stages = [f"stage:{stage}" for stage in range(1, len(lm.settings.efforts) + 1)]
            usual = ["intern", *stages, "mentor", "cascade", "llm_cascade", "escalate"]
            policies = [policy for policy in usual if not self._lacking(lm, Policy.parse(policy, len(stages)))]
            self.names += [f"{TANDEM}/{policy}" for policy in policies]
            described = dict.fromkeys([*policies, str(lm.settings.policy)])
            self.descriptions = [
                {"name": name, "description": Policy.parse(name, len(stages)).kind.description} for name in described
            ]

    def _find(self, name: str) -> Offer:
        """What answers under a name; called as `find`, which remembers it.

        Raises
        ------
        RequestError
            Nothing does (404).
        """
        lm = self._lm
        if name == self.default:
            return self._of_policy(lm, lm.settings.policy) if isinstance(lm, TandemLM) else self._of_ensemble(lm)
        prefix, _, text = name.partition("/")
        if isinstance(lm, TandemLM) and prefix == TANDEM and text.isascii() and 0 < len(text) <= LONGEST_POLICY:
            try:
                policy = Policy.parse(text, len(lm.settings.efforts))
            except ArgumentError:
                raise self._unknown(name) from None
            lacking = self._lacking(lm, policy)
            if lacking:
                raise RequestError(404, f"the model {name} {lacking}.", code="model_not_found", param="model")
            return self._of_policy(lm, policy)
        raise self._unknown(name)

    def _unknown(self, name: str) -> RequestError:
        listed = ", ".join(self.names)
        return RequestError(
            404, f"the model {name[:80]!r} does not exist; use {listed}.", code="model_not_found", param="model"
        )

    @staticmethod
    def _lacking(lm: TandemLM, policy: Policy) -> str:
        """Why the loaded models cannot do a policy, as the end of a sentence; "" where they can."""
        needed = {"mentor": policy.needs_mentor, "intern": policy.needs_intern}
        for role, engine in lm.engines.items():
            if needed[role] and engine is None:
                return f"needs the {role}, which was not loaded for policy={lm.settings.policy}"
        if policy.needs_judge and lm.judge is None:
            return f"needs a classifier, which was not loaded for policy={lm.settings.policy}"
        intern = lm.engines["intern"]
        if policy.entropy is not None and intern is not None and intern.cannot_measure:
            return f"cannot work: {intern.cannot_measure.rstrip('.')}"
        return ""

    @staticmethod
    def _of_policy(lm: TandemLM, policy: Policy) -> Offer:
        needed = {"mentor": policy.needs_mentor, "intern": policy.needs_intern}
        engines = {role: engine if needed[role] else None for role, engine in lm.engines.items()}
        settings = replace(lm.settings, policy=policy)

        def named(engine: Engine | None, role: str) -> Any:
            return None if engine is None else RoleEngine(engine, role)

        cascade = replace(
            lm.cascade,
            mentor=named(lm.cascade.mentor, "mentor"),
            intern=named(lm.cascade.intern, "intern"),
            policy=policy,
            prompts=policy.prompts(lm.settings.prompts),
            efforts=policy.efforts(lm.settings.efforts),
            judge=lm.judge_for(policy),
        )
        writer = "mentor" if policy.mentor_alone else "intern"
        is_configured = policy == lm.settings.policy
        reader = lm.answering if is_configured else engines[writer]
        assert reader is not None
        hands_off = cascade.prompts.hands_off and policy.needs_mentor and policy.needs_intern
        cannot = ""
        if policy.is_stepwise or policy.budget is not None or hands_off or policy.kind.mentor_answers == "last":
            cannot = f"policy={policy} has no log-probabilities, because its answer is not written by one model alone"
        elif not isinstance(engines[writer], LocalTokenizer):
            cannot = f"the backend of the {writer} does not report the log-probabilities of its tokens one by one"

        def measured() -> tuple[Answerer, MeasuringEngine]:
            engine = cascade.mentor if writer == "mentor" else cascade.intern
            assert engine is not None
            measuring: Any = MeasuringEngine(engine)
            if writer == "mentor":
                return replace(cascade, mentor=measuring), measuring
            return replace(cascade, intern=measuring), measuring

        def check_fits(task: Task) -> int:
            if policy.needs_judge:
                lm.compare_rendering(task)
            return requests.check_fits(task, settings, engines)

        return Offer(
            policy=str(policy),
            kind=policy.name,
            has_intern=policy.needs_intern,
            answerer=cascade,
            check_fits=check_fits,
            longest_answer=lambda task: requests.longest_answer(task, settings, engines),
            reader=reader,
            answer_tokens=lambda record: answer_tokens(record, hands_off),
            cannot_measure=cannot,
            measured=measured,
        )

    @staticmethod
    def _of_ensemble(lm: Any) -> Offer:
        return Offer(
            policy=lm.settings.policy,
            kind=ENSEMBLE,
            has_intern=False,
            answerer=lm.answerer,
            check_fits=lm.check_fits,
            longest_answer=lm.longest_answer,
            reader=lm.answering,
            answer_tokens=lambda record: answer_tokens(record, hands_off=False),
            cannot_measure="an ensemble's answer has no log-probabilities of its own",
        )


def answer_tokens(record: Record, hands_off: bool) -> int:
    """The tokens of an answer, as its writers count them.

    Parameters
    ----------
    record
        Of the question.
    hands_off
        Whether what the mentor writes is the beginning of the answer.
    """
    if record.segments:
        return sum(segment.tokens for segment in record.segments)
    if record.stage >= 0:
        return record.tokens.intern_new - record.refused_tokens
    insights = 0 if hands_off or not record.stages else record.stages[-1].mentor_tokens
    return record.tokens.mentor_new - insights
