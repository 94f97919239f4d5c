"""Requests of token ids to the llama-servers of one model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lm_eval_tandem.engines.drafts import common_prefix_length
from lm_eval_tandem.engines.http.client import ServerPool, ServerWork
from lm_eval_tandem.engines.http.options import Options
from lm_eval_tandem.engines.llamacpp.child import OwnServer
from lm_eval_tandem.engines.llamacpp.replies import FIELDS, Distribution, Reply
from lm_eval_tandem.errors import EngineError, UnreachableError

FORCED = 1e9
"""What is added to the logit of a token that has to follow; reported log-probabilities are those without it."""


@dataclass
class ServerSession:
    """A text that grows from request to request.

    Attributes
    ----------
    read
        The tokens of the last request.
    slot
        The server's slot that takes the requests; None for whichever it chooses.
    """

    read: list[int] = field(default_factory=list)
    slot: int | None = None


@dataclass(frozen=True)
class LlamaServers:
    """The llama-servers of one model.

    Attributes
    ----------
    name
        Of the model.
    urls
        Their addresses.
    own
        The one that this process has started; None where they ran already.
    slots
        Number of texts that each works on at once.
    vocabulary
        Number of different tokens.
    end
        The end token.
    timeout
        Seconds to wait for a reply.
    work
        Totals, to which the requests are added.
    """

    name: str
    urls: tuple[str, ...]
    own: OwnServer | None
    slots: int
    vocabulary: int
    end: int
    timeout: float
    work: ServerWork
    pool: ServerPool = field(init=False)

    def __post_init__(self) -> None:
        options = Options(
            self.name,
            ";".join(self.urls),
            concurrency=self.max_concurrency,
            timeout=self.timeout,
            total_timeout=np.inf,
        )
        object.__setattr__(self, "pool", ServerPool(options, "", self.work))

    @property
    def max_concurrency(self) -> int:
        """Number of texts that all of them work on at once."""
        return self.slots * len(self.urls)

    def reconnected(self) -> LlamaServers:
        """The same servers with connections of their own, for another event loop."""
        return replace(self)

    async def complete(self, session: ServerSession, ids: list[int], body: dict[str, Any]) -> Reply:
        """One request, sent again where it fails.

        Raises
        ------
        CallError
            All attempts have failed.
        UnreachableError
            No request can succeed.
        """
        sent = {
            "prompt": ids,
            "cache_prompt": True,
            "return_tokens": True,
            "response_fields": list(FIELDS),
            **({} if session.slot is None else {"id_slot": session.slot}),
            **body,
        }
        affinity = str(id(session))

        async def attempt(number: int) -> Reply:
            if self.own is not None and self.own.ended:
                raise UnreachableError(
                    f"the llama.cpp server of {self.name} has ended: {self.own.last_words()}; finished answers are "
                    "kept where store= is given: start the same command again, perhaps with a smaller batch_size."
                )
            return Reply.of(await self.pool.post("/completion", sent, affinity, number))

        reply = await self.pool.retry(attempt, self.pool.retries("llamacpp"), takes_connection=False)
        self.work.prefill_tokens += reply.read
        self.work.recomputed_tokens += max(0, common_prefix_length(session.read, ids) - reply.cached)
        session.read = ids + reply.tokens[:-1]  # the last token was generated, but never read
        return reply

    async def forced(self, session: ServerSession, before: list[int], token: int, columns: int) -> Distribution | None:
        """What the model expects after `before`, by a request in which `token` is made to follow.

        The likeliest tokens are as many as `columns`. None where the server reports nothing, as it does for the first
        bytes of a character.
        """
        body = {"temperature": 0, "n_predict": 1, "n_probs": columns, "logit_bias": [[token, FORCED]]}
        reply = await self.complete(session, before, body)
        return reply.distributions[0] if reply.distributions else None

    async def distribution(
        self, session: ServerSession, before: Sequence[int], token: int, columns: Iterable[int]
    ) -> Distribution:
        """What the model expects after `before`, the log-probability of `token` included.

        The token is made to follow, so that its log-probability is in the reply. Where the server reports nothing of
        it, the end token is made to follow, and the token is looked up among more and more of the likeliest tokens.

        Parameters
        ----------
        session
            That the text belongs to.
        before
            The text.
        token
            The token after it.
        columns
            Numbers of the likeliest tokens to ask for, one after the other until the token is found.

        Raises
        ------
        EngineError
            The server reports no probabilities.
        """
        follows = token
        for n in columns:
            found = await self.forced(session, list(before), follows, n)
            if found is not None and found.logprob_of(token) is not None:
                return found
            follows = self.end
        raise EngineError(
            f"{self.name}: the llama-server reports no probability of token {token} (n_probs); use a newer one."
        )
