"""The contract every engine keeps: `generate` and `score`, for any number of coroutines at once.

The cascade knows nothing else of a model. Batching, caching of prefixes, devices and connections are the engine's
business. `tests/engines/conformance.py` holds what every engine must pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.accounting import Prices
from lm_eval_tandem.errors import EngineError

Messages = tuple[tuple[str, str], ...]
"""A conversation as (role, content) pairs."""


@dataclass(frozen=True)
class Prompt:
    """What a role reads: rendered text, then optionally tokens that the role itself wrote before.

    text: the rendered prompt (chat template applied where there is one).
    continued: token ids that follow the text; growing a mentor's text is `generate` from text + continued.
    session: questions with the same session share a prefix; an engine may keep what it computed for it until
        `release(session)`. Never part of a store's key.
    horizon: how many new tokens this call and later ones that grow its text may ask for in all; None where no later
        one will. An engine that reads a server's stream asks for so many. Never part of a store's key.
    draft: token ids that a greedy generation may begin with. An engine that can (`Engine.drafts`) reads them in one
        pass and keeps those that it would have written itself. They change no output, so they are no part of a key.
    """

    text: str
    continued: tuple[int, ...] = ()
    session: str | None = None
    horizon: int | None = None
    draft: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How to generate. `temperature == 0` is greedy; None leaves a value to the model's own generation defaults.

    `max_tokens` counts new tokens, the end token included. `measured` asks for the model's own distribution at each
    new token (before temperature and the like): `Completion.logprob` and `.entropy`, over small vocabularies both
    reported as 0 for a token that is nearly certain (`entropy.told`). `max_entropy`, in nats, goes with it: generation
    ends with the first token that has a higher entropy.
    """

    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int = 0
    measured: bool = False
    max_entropy: float | None = None


@dataclass(frozen=True)
class Completion:
    """One finished generation.

    text: the decoded new tokens, special tokens left out, cut before the first stop string.
    token_ids: the new tokens as generated (end token and stop string included). An engine that sees only text counts
        in an alphabet of its own (`Engine.decode` reads it) and says in `counted` how many tokens they were.
    finish_reason: "stop" (end token or stop string), "length" (`max_tokens` reached) or "max_entropy"
        (`Sampling.max_entropy` exceeded).
    prompt_tokens: tokens of the prompt; cached_tokens: those of them that an earlier call had already computed.
    seconds: from submission to the end, waiting included.
    logprob, entropy: float32 of length len(token_ids) for `Sampling.measured`, natural logarithms; otherwise None.
    counted: new tokens as a server billed them, where that is not len(token_ids).
    dollars: what a server took for it, attempts that failed but were billed included; None where prices are unknown.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    seconds: float
    logprob: NDArray[np.float32] | None = None
    entropy: NDArray[np.float32] | None = None
    counted: int | None = None
    dollars: float | None = None

    @property
    def new_tokens(self) -> int:
        """Tokens generated, as the engine counts them (L_L or L_S of Eq. 12)."""
        return len(self.token_ids) if self.counted is None else self.counted


@dataclass(frozen=True)
class ScoringView:
    """How a judge looks at a prompt, beside its statistics.

    hidden: it wants `TokenStats.hidden`.
    adapter: checksum of the LoRA adapter that the model reads with (`loading.adapt`); None for the weights that answer.
        What was computed with one is never used with another.
    """

    hidden: bool = False
    adapter: str | None = None


DEFAULT_VIEW = ScoringView()
"""The statistics alone."""


def require_default_view(view: ScoringView, name: str) -> None:
    """For engines that tell statistics alone. Raises EngineError for any other view of a prompt by the model `name`."""
    if view != DEFAULT_VIEW:
        raise EngineError(
            f"{name} runs where hidden states are not told and no adapter is read with; run the intern with "
            "intern_backend=hf, or use a classifier fitted with other --inputs than hidden or lora."
        )


@dataclass(frozen=True)
class TokenStats:
    """The intern's view of a prompt of n tokens (paper, Eq. 3-5), natural logarithms.

    logprob, entropy: float32 arrays of length n; entry i belongs to token i given the tokens before it. Entry 0 is
        NaN where the first token has no token before it.
    cached_tokens: leading tokens whose statistics an earlier call had computed.
    seconds: the time of the forward pass that this prompt shared, divided by the prompts in its batch.
    hidden: for `ScoringView.hidden` the last layer's hidden state at the last token, as it goes into the output layer;
        float32 of shape (D,).
    """

    logprob: NDArray[np.float32]
    entropy: NDArray[np.float32]
    cached_tokens: int
    seconds: float
    hidden: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.logprob)


@dataclass(frozen=True)
class Unused:
    """What a server had written for a session, and billed, that no call asked for any more."""

    tokens: int
    dollars: float | None = None


@dataclass
class Work:
    """What an engine really computed since it was made (not what a store answered)."""

    prefill_tokens: int = 0
    recomputed_tokens: int = 0
    """Prompt tokens computed again although an earlier call of the same session had computed them."""
    decode_tokens: int = 0
    judge_seconds: float = 0.0
    generate_seconds: float = 0.0


class Engine(Protocol):
    """One loaded model. The two async calls come from one event loop; everything else is called from anywhere."""

    @property
    def lm(self) -> Any:
        """The harness's own model around the same weights (tokenizer, chat template, likelihoods); None without one."""
        ...

    @property
    def max_concurrency(self) -> int:
        """How many calls at once keep the engine busy."""
        ...

    @property
    def name(self) -> str:
        """How the model is called in results, e.g. the path or hub id."""
        ...

    @property
    def parameters(self) -> int | None:
        """|theta| of Eq. 12: all parameters counted; None where nobody says."""
        ...

    @property
    def window(self) -> int:
        """Tokens that prompt and new tokens may have together."""
        ...

    @property
    def drafts(self) -> bool:
        """Whether a greedy generation reads `Prompt.draft` instead of writing the same tokens again."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything besides prompt and sampling that can change an output; part of the store's key."""
        ...

    @property
    def work(self) -> Work:
        """What the engine has computed so far."""
        ...

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """Raises ContextError when prompt and `max_tokens` exceed the window."""
        ...

    async def score(self, prompt: Prompt, view: ScoringView = DEFAULT_VIEW) -> TokenStats:
        """Raises ContextError when the prompt exceeds the window, EngineError when the engine cannot score, or not in
        this view.
        """
        ...

    def release(self, session: str) -> Unused | None:
        """The session's calls are over: what was kept for it may go, a server that still writes stops."""
        ...

    def render(self, messages: Messages, generation_prompt: bool = True) -> str:
        """The conversation in the model's own chat template."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered prompt."""
        ...

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """The text of generated tokens, special tokens left out, an incomplete last character left out too."""
        ...

    def text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """The text of a whole answer as `generate` gives it: cut before the first stop string, and, where that was
        asked for, without its thinking.
        """
        ...

    def close(self) -> None:
        """Stop worker threads and free what is kept."""
        ...


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    n = min(len(a), len(b))
    for i in range(n):
        if a[i] != b[i]:
            return i
    return n


def accepted_draft_tokens(draft: Sequence[int], written: Sequence[int]) -> int:
    """How many tokens of a generation its draft spared the engine: every call writes at least one token itself."""
    return min(common_prefix(draft, written), len(written) - 1)


PROMPT_TAIL = 8
"""Tokens at a prompt's end among which `strip_prompt_overlap` looks."""


def strip_prompt_overlap(prompt: Sequence[int], draft: tuple[int, ...]) -> tuple[int, ...]:
    """A draft without the leading tokens that the prompt ends with: a cue that another prompt had left to the model."""
    for n in range(min(PROMPT_TAIL, len(draft), len(prompt)), 0, -1):
        if tuple(prompt[-n:]) == draft[:n]:
            return draft[n:]
    return draft


@dataclass(frozen=True)
class Role:
    """One model: where it is, what runs it, and the arguments that its engine gets."""

    model: str
    backend: str
    arguments: Mapping[str, Any]
    label: str
    """How results and classifiers call it."""
    prices: Prices | None = None
    """Of its tokens, if they are known."""

    @property
    def short(self) -> str:
        """The last part of the path or hub id, for names of runs."""
        return Path(self.model).name
