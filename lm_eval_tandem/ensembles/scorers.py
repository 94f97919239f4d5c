"""What rates the candidates of an ensemble, as a user names it: log-probabilities, a reward model, or a server.

`check` refuses what cannot work before any model is loaded, `parse` makes the scorer. The contract is in
`engines.rating`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_tandem.engines import Engine, Prompt, ScoringView
from lm_eval_tandem.engines.drafts import common_prefix_length
from lm_eval_tandem.engines.rating import Candidate, Score, Scorer, reward_kind
from lm_eval_tandem.errors import ArgumentError, EngineError, install

LOGPROB = "logprob:"
"""Start of the name of a scorer that is a member of the ensemble."""
OPTIONS = {
    "step_separator": "reward model",
    "device": "reward model",
    "dtype": "reward model",
    "batch_size": "reward model",
    "api_key_env": "server",
}
"""The options of a scorer, and which kind of scorer takes each."""
GENERAL = ("device", "dtype", "batch_size")
"""Options that a run has for all its models, so that a scorer that loads none ignores them."""
LOCAL = re.compile(r"[./~]|[A-Za-z]:\\")
"""Start of a path, as opposed to a hub id."""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class LogprobScorer:
    """A scorer (see `rating.Scorer`): the mean log-probability, in nats per token, of a text under one of the members.

    The text is given the member's own prompt and the beginning of the answer. The member's engine belongs to its
    owner, who also ends the candidates' sessions.

    Parameters
    ----------
    name
        Of the member, as `Candidate.prompts` has it.
    engine
        Of the member.

    Raises
    ------
    EngineError
        The engine cannot score a prompt.

    Examples
    --------
    >>> scorer = LogprobScorer("intern", engine)
    >>> [score] = await scorer.score([Candidate("1 + 1 =", None, "", " 2", {"intern": "1 + 1 ="}, "q1")])
    """

    def __init__(self, name: str, engine: Engine) -> None:
        if engine.cannot_score:
            raise EngineError(engine.cannot_score)
        self.name = f"{LOGPROB}{name}"
        self.parameters = engine.parameters
        self._member, self._engine = name, engine

    @property
    def identity(self) -> Mapping[str, Any]:
        """See `rating.Scorer.identity`: that of the member's engine."""
        return {"scorer": "logprob", "model": dict(self._engine.identity)}

    async def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """See `rating.Scorer.score`. One after the other, so that each continues what its session has read."""
        return [await self._score(candidate) for candidate in candidates]

    def close(self) -> None:
        """See `rating.Scorer.close`: nothing, because the engine is not the scorer's own."""

    async def _score(self, candidate: Candidate) -> Score:
        before = candidate.prompts[self._member] + candidate.begun
        whole = before + candidate.text
        ids = self._engine.encode(whole)
        # A token that joins the end of one text with the start of the next counts as part of the next.
        start = max(1, common_prefix_length(self._engine.encode(before), ids))  # the first has no log-probability
        if start >= len(ids) or not candidate.text:
            return Score(float("-inf"), 0, 0.0)
        stats = await self._engine.score(Prompt(whole, session=candidate.session), ScoringView(since=start))
        tokens, seconds = len(stats), stats.seconds
        if len(stats) != len(ids):  # a server's own tokens, which `encode` only estimates
            unrated = await self._engine.score(Prompt(before, session=candidate.session))
            start = max(1, len(unrated))
            tokens, seconds = tokens + len(unrated), seconds + unrated.seconds
        logprob = stats.logprob[start:]
        return Score(float(np.mean(logprob, dtype=np.float64)) if len(logprob) else float("-inf"), tokens, seconds)


def check(text: str, names: Collection[str], options: Mapping[str, Any] | None = None) -> None:
    """Refuse a scorer that cannot work, before any model is loaded.

    Parameters
    ----------
    text
        "logprob:NAME", the address of a server, or the folder or hub id of a reward model.
    names
        Of the members of the ensemble.
    options
        Values of `OPTIONS`; None for one that is not set.

    Raises
    ------
    ArgumentError
        No member has the name, the address is none, the folder holds no reward model, or an option is unknown or has
        no effect.
    """
    kind = kind_of(text)
    check_options(text, kind, options or {})
    if kind == "member":
        if text.removeprefix(LOGPROB) not in names:
            raise ArgumentError(f"scorer={text} names no member of the ensemble; use one of {_members(names)}.")
    elif kind == "server":
        if find_spec("openai") is None:
            raise ArgumentError(f"scorer={text} needs the package openai; install it with {install('openai')}.")
        from lm_eval_tandem.engines.http.scorer import key_of, scorer_options

        key_of(scorer_options(text, (options or {}).get("api_key_env")))
    else:
        check_reward_model(text, names)


def parse(text: str, engines: Mapping[str, Engine], options: Mapping[str, Any] | None = None) -> Scorer:
    r"""Make the scorer that a user names.

    Parameters
    ----------
    text, options
        As for `check`.
    engines
        The members of the ensemble by name, loaded.

    Raises
    ------
    ArgumentError
        As for `check`.
    EngineError
        The member cannot score, or the reward model cannot be loaded.

    Examples
    --------
    >>> scorer = parse("trl-lib/Qwen2-0.5B-Reward-Math-Sheperd", engines, {"step_separator": "\n"})
    """
    check(text, engines, options)
    kind = kind_of(text)
    given = {name: value for name, value in (options or {}).items() if value is not None and OPTIONS[name] == kind}
    if "batch_size" in given:  # "auto" is for engines; a reward model's own default is as good
        size = str(given.pop("batch_size"))
        given |= {"batch_size": int(size)} if size.isdecimal() else {}
    if kind == "member":
        name = text.removeprefix(LOGPROB)
        return LogprobScorer(name, engines[name])
    if kind == "server":
        from lm_eval_tandem.engines.http.scorer import HTTPScorer

        return HTTPScorer(text, **given)
    from lm_eval_tandem.engines.hf.reward_model import RewardModel

    return RewardModel(text, **given)


def kind_of(text: str) -> str:
    """What a scorer is, by its name: a "member" of the ensemble, a "server" or a "reward model"."""
    if text.startswith(LOGPROB):
        return "member"
    return "server" if text.startswith(("http://", "https://")) else "reward model"


def check_options(text: str, kind: str, options: Mapping[str, Any]) -> None:
    """Refuse options that no scorer has, or that have no effect on one of this kind."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise ArgumentError(f"{name} is no option of a scorer; use {', '.join(OPTIONS)}.")
        if value is not None and OPTIONS[name] != kind and name not in GENERAL:
            raise ArgumentError(f"{name}={value!r} has no effect on scorer={text}; it is for a {OPTIONS[name]}.")


def check_reward_model(text: str, names: Collection[str]) -> None:
    """Refuse a folder that is missing or holds no reward model, and what is neither a path nor a hub id."""
    folder = Path(text).expanduser()
    if not folder.is_dir():
        if LOCAL.match(text) or text.count("/") > 1:
            raise ArgumentError(f"scorer={text} is no folder; give that of a saved reward model, or the id of one.")
        if text in names or not HUB_ID.fullmatch(text):
            raise ArgumentError(
                f"scorer={text} is not known; use one of {_members(names)}, the folder or hub id of a reward model, or "
                "the address of a server (http://…)."
            )
        return
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architectures = config.get("architectures")
    except (OSError, ValueError, AttributeError):
        raise ArgumentError(
            f"scorer={text} is a folder without a config.json that can be read; give that of a saved reward model."
        ) from None
    reward_kind(f"scorer={text}", architectures)


def _members(names: Collection[str]) -> str:
    return ", ".join(f"{LOGPROB}{name}" for name in names)
