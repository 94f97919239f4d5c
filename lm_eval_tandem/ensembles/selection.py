"""Which models of an ensemble answer a question: `zscore`, `self_assessment` and `random`.

`zscore` compares how each model reads the question with how it reads questions in general, `self_assessment` asks each
model whether it can solve it. Neither generates a token: all that they need are passes of `Engine.score` over the
prompt, from which the answer then starts where the model is selected. What is usual for a model is in a reference file,
which `training.reference` collects.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lm_eval_tandem import digits
from lm_eval_tandem.cascade.prompts import Question, append_to_last_user_turn
from lm_eval_tandem.engines import Engine, Prompt, ScoringView
from lm_eval_tandem.engines.drafts import common_prefix_length
from lm_eval_tandem.ensembles.reference_file import Reference, reference_of
from lm_eval_tandem.errors import ArgumentError, EngineError

CONFIDENT = ScoringView(confidence=True)
"""The view that `measure` needs; `engines.registry.check_view` says which backends have it."""
ASSESSMENT = (
    "\n\nDo not answer this yet. Can you solve it correctly on your own? Reply with one word, Yes or No.\nReply:"
)
"""Asks a model after the question whether it can solve it."""
ANSWERS = (" Yes", " No")
"""The two replies; without the blank where the prompt already ends with a blank or line break."""
UNSAID = 0.01
"""Probability of both replies together below which what a model makes of them is taken for no reply."""
MANY_UNSURE = 0.9
"""Share of models with a perplexity above their mean from which three instead of two models are selected."""


# What is measured


@dataclass(frozen=True)
class Measurement:
    """How a model reads a question.

    Attributes
    ----------
    values
        Perplexity (1 or more) and confidence (0 to 1).
    texts
        The prompts that were read, in their order, for their costs.
    """

    values: tuple[float, float]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class SelfAssessment:
    """What a model says of whether it can solve a question.

    Attributes
    ----------
    value
        P(yes) - P(no), from -1 to 1.
    texts
        The prompts that were read, in their order, for their costs.
    probability
        P(yes) + P(no). Below `UNSAID` the model would say neither, and its value tells nothing.
    """

    value: float
    texts: tuple[str, ...]
    probability: float

    @property
    def is_unsaid(self) -> bool:
        """Whether the model would say neither Yes nor No."""
        return self.probability < UNSAID


async def measure(engine: Engine, text: str, session: str | None) -> Measurement:
    """Perplexity and confidence of a model over the tokens of a prompt after the first.

    The perplexity is exp(-mean log-probability of the tokens), the confidence the mean probability of the most likely
    token at each of their places.

    Parameters
    ----------
    engine
        The model, of a backend that reports confidence.
    text
        The prompt that the model would answer from.
    session
        Name of the question (`Prompt.session`).

    Raises
    ------
    ArgumentError
        The prompt has fewer than two tokens.
    ContextError, EngineError
        As `Engine.score`.
    """
    stats = await engine.score(Prompt(text, session=session), CONFIDENT)
    if len(stats) < 2:
        raise ArgumentError(
            f"a question of {len(stats)} token has no perplexity for {engine.name}; ask a longer one, or use another "
            "selection."
        )
    assert stats.confidence is not None
    with np.errstate(over="ignore"):  # infinite where the model holds a token for impossible
        perplexity = float(np.exp(np.float64(-digits.mean(stats.logprob[1:]))))
    confidence = digits.mean(np.exp(stats.confidence[1:].astype(np.float64)))
    return Measurement((perplexity, confidence), (text,))


def assessment_prompt(engine: Engine, question: Question) -> str:
    """The prompt that asks a model whether it can solve the question, without the words that begin an answer to it."""
    if question.messages is None:
        return question.text + ASSESSMENT
    return engine.render(append_to_last_user_turn(question.messages, ASSESSMENT))


async def assess(engine: Engine, prompt_text: str, session: str | None) -> SelfAssessment:
    """P(yes) - P(no): how much likelier a model is to go on with "Yes" than with "No".

    Each is the probability of all tokens of the reply. They begin where the tokens of prompt, prompt with "Yes" and
    prompt with "No" part, so that a tokenizer that merges end of prompt and reply compares the same stretch of text.

    Parameters
    ----------
    engine
        The model.
    prompt_text
        See `assessment_prompt`.
    session
        Name of the question (`Prompt.session`).

    Raises
    ------
    EngineError
        The engine's tokens cannot be told apart, or as `Engine.score`.
    ContextError
        As `Engine.score`.
    """
    replies = [reply.lstrip() if prompt_text[-1:].isspace() else reply for reply in ANSWERS]
    texts = tuple(prompt_text + reply for reply in replies)
    before, *both = (engine.encode(text) for text in (prompt_text, *texts))
    shared = min(common_prefix_length(before, both[0]), common_prefix_length(both[0], both[1]))
    probabilities = []
    for text, ids in zip(texts, both, strict=True):  # one after the other: the second reads only its reply
        stats = await engine.score(Prompt(text, session=session), ScoringView(since=shared))
        if len(stats) != len(ids):
            raise EngineError(
                f"{engine.name} reads {len(stats)} tokens where {len(ids)} were counted, so a reply's probability is "
                "not known; give the server's tokenizer=, or use another selection."
            )
        probabilities.append(math.exp(digits.total(stats.logprob[shared:])))
    return SelfAssessment(probabilities[0] - probabilities[1], texts, sum(probabilities))


# Who is selected


def zscores(measured: Mapping[str, tuple[float, float]], reference: Mapping[str, Reference]) -> dict[str, float]:
    """How much better than usual each model reads a question: lower perplexity and higher confidence, standardised.

    Parameters
    ----------
    measured
        `Measurement.values` by the model's label.
    reference
        `read_reference`.

    Returns
    -------
    dict
        z = (ppl_mean - ppl) / ppl_std + (conf - conf_mean) / conf_std, by the model's label.

    Raises
    ------
    ArgumentError
        The reference lacks a model.
    """
    scores = {}
    for label, (perplexity, confidence) in measured.items():
        usual = reference_of(label, reference)
        better_perplexity = (usual.ppl_mean - perplexity) / usual.ppl_std
        scores[label] = better_perplexity + (confidence - usual.conf_mean) / usual.conf_std
    return scores


def default_count(measured: Mapping[str, tuple[float, float]], reference: Mapping[str, Reference]) -> int:
    """Number of models for a question: 3 if most of them read it worse than usual (`MANY_UNSURE`), otherwise 2."""
    perplexities = digits.without_last_bits([perplexity for perplexity, _ in measured.values()])
    usual = digits.without_last_bits([reference_of(label, reference).ppl_mean for label in measured])
    unsure = int((perplexities > usual).sum())
    return min(3 if unsure >= MANY_UNSURE * len(measured) else 2, len(measured))


def select_by_zscore(
    measured: Mapping[str, tuple[float, float]], reference: Mapping[str, Reference], count: int | None = None
) -> list[str]:
    """The models with the highest `zscores`, the highest first; of equal ones, the one that was given first.

    Parameters
    ----------
    measured, reference
        As in `zscores`.
    count
        Number of models; None for `default_count`.

    Raises
    ------
    ArgumentError
        The reference lacks a model, or `count` is not between 1 and the number of models.
    """
    count = default_count(measured, reference) if count is None else _checked_count(count, len(measured))
    return _highest(zscores(measured, reference))[:count]


def compared_with_usual(
    assessed: Mapping[str, float], reference: Mapping[str, Reference] | None = None
) -> dict[str, float]:
    """How confident each model is of solving a question, compared with how confident it usually is.

    Parameters
    ----------
    assessed
        `SelfAssessment.value` by the model's label.
    reference
        `read_reference`; a model's `Reference.assessment_mean`, where there is one, is subtracted, because some models
        say Yes to everything.
    """
    usual = {label: one.assessment_mean or 0.0 for label, one in (reference or {}).items()}
    return {label: value - usual.get(label, 0.0) for label, value in assessed.items()}


def select_by_assessment(assessed: Mapping[str, float], reference: Mapping[str, Reference] | None = None) -> str:
    """The model that is most confident of solving a question; of equally confident ones, the one that was given first.

    Parameters
    ----------
    assessed, reference
        As in `compared_with_usual`.
    """
    return _highest(compared_with_usual(assessed, reference))[0]


def select_random(names: Sequence[str], count: int, seed: int, key: tuple[str, int, int]) -> list[str]:
    """Some models, drawn for each question without replacement; in the order in which they were given.

    Parameters
    ----------
    names
        Labels of the models; no two are equal.
    count
        Number of models to draw.
    seed
        Of the run.
    key
        Task, document and repetition (`cascade.question_run.Task.key`).

    Raises
    ------
    ArgumentError
        `count` is not between 1 and the number of models.

    Notes
    -----
    The models with the smallest SHA-256 of seed, question and label are drawn: alike on every machine and in every
    order of the questions.
    """
    question = "/".join(map(str, (seed, *key)))
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{question}/{name}".encode()).digest())
    drawn = set(ranked[: _checked_count(count, len(names))])
    return [name for name in names if name in drawn]


def _highest(scores: Mapping[str, float]) -> list[str]:
    """Labels from the highest score to the lowest, those that are equal up to their last bits as given."""
    rounded = dict(zip(scores, digits.without_last_bits(list(scores.values())).tolist(), strict=True))
    return sorted(scores, key=lambda label: -rounded[label])


def _checked_count(count: int, models: int) -> int:
    if not 1 <= count <= models:
        raise ArgumentError(f"{count} models cannot be selected of {models}; give a number from 1 to {models}.")
    return count
