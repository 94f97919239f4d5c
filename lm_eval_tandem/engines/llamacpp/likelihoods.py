"""Log-likelihoods of given texts, from a server that reports probabilities only of tokens that it generates.

Each token of a continuation is made to follow the text before it (`LlamaServers.forced`): the reply holds its
log-probability under the model, over the whole vocabulary, and the likeliest tokens. That is one request of one new
token for each token of a continuation, and the server reads each token of a text once. The continuations of one context
go to one slot, one after the other, so that the context is read once; what the likeliest tokens of one reply say of
another continuation is not asked for again. Continuations of different contexts go to all slots at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lm_eval_tandem.engines.http.client import run_apart
from lm_eval_tandem.engines.limits import undefined_logits
from lm_eval_tandem.engines.llamacpp.replies import Distribution
from lm_eval_tandem.engines.llamacpp.servers import LlamaServers, ServerSession
from lm_eval_tandem.errors import EngineError

log = logging.getLogger(__name__)

CANDIDATES = 20
"""The likeliest tokens that each reply holds; other continuations of a context often begin with one of them."""
MORE_CANDIDATES = 1000
"""How many are asked for where a token is only part of a character, before all are."""
UNDERFLOW, LEAST = math.log(2.0**-126), math.log(2.0**-149)
"""The server computes probabilities as 32-bit numbers, which are coarse below the first of these; what is less likely
than the second, the smallest of them, counts as that."""
TOLERANCE = 0.5
"""Largest difference, in nats, between what a server reports of a token that is made to follow and of the same one
among the likeliest tokens. The last of 20 is at -3 or below; a server that reports what it has forced says 0."""
PROBES = 8
"""Tokens that may be parts of characters before one that a server reports has to come."""


class Pair(NamedTuple):
    """A context and the continuation whose log-likelihood is wanted, both as token ids; neither is empty."""

    context: list[int]
    continuation: list[int]


class Likelihood(NamedTuple):
    """The log-probability of a continuation in nats, and whether each of its tokens is the likeliest."""

    logprob: float
    is_greedy: bool


@dataclass
class Node:
    """A place in the tree of a context's continuations: what is known of the tokens there, and what follows them."""

    known: dict[int, Likelihood] = field(default_factory=dict)
    after: dict[int, Node] = field(default_factory=dict)


class Likelihoods:
    """Measures log-likelihoods on the servers of a model.

    Parameters
    ----------
    servers
        Of the model.
    prefix
        A token that may begin a text.
    """

    def __init__(self, servers: LlamaServers, prefix: int) -> None:
        self._servers, self._prefix = servers, prefix
        self._checked = False
        self._unlikely = 0

    def measure(self, pairs: Sequence[Pair], take: Callable[[int, Likelihood], None]) -> None:
        """Hand each pair's number and likelihood to `take`, in any order, from a thread of their own.

        Raises
        ------
        EngineError
            The servers report no log-probabilities of the model, or a request has failed finally.
        """
        if not pairs:
            return
        servers, unlikely = self._servers.reconnected(), self._unlikely
        run_apart(servers.pool, self._measure(servers, pairs, take))
        if self._unlikely > unlikely:
            log.warning(
                "%s: %d tokens are less likely than e^-87, which llama.cpp cannot tell exactly; none counts as less "
                "likely than e^-103.",
                servers.name,
                self._unlikely - unlikely,
            )

    async def _measure(
        self, servers: LlamaServers, pairs: Sequence[Pair], take: Callable[[int, Likelihood], None]
    ) -> None:
        if not self._checked:
            await check_forcing(servers, self._prefix)
            self._checked = True
        waiting = iter(grouped(pairs))
        pinned = len(servers.urls) == 1

        async def work(slot: int) -> None:
            for group in waiting:
                session, root = ServerSession(slot=slot if pinned else None), Node()
                for place in group:
                    take(place, await self._likelihood(servers, session, pairs[place], root))

        workers = [asyncio.ensure_future(work(slot)) for slot in range(servers.max_concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()

    async def _likelihood(self, servers: LlamaServers, session: ServerSession, pair: Pair, root: Node) -> Likelihood:
        """The likelihood of one continuation; `root` holds what is known of others after the same context."""
        node, logprob, is_greedy = root, 0.0, True
        columns = (CANDIDATES, MORE_CANDIDATES, servers.vocabulary)
        for place, token in enumerate(pair.continuation):
            if token not in node.known:
                before = pair.context + pair.continuation[:place]
                found = await servers.distribution(session, before, token, columns)
                node.known = likelihoods_in(found, servers.name) | node.known
                self._unlikely += node.known[token].logprob < UNDERFLOW
            one = node.known[token]
            logprob, is_greedy = logprob + one.logprob, is_greedy and one.is_greedy
            node = node.after.setdefault(token, Node())
        return Likelihood(logprob, is_greedy)


def likelihoods_in(found: Distribution, name: str) -> dict[int, Likelihood]:
    """What a reply says of single tokens.

    Raises
    ------
    CallError
        The model computed NaN.
    """
    logprobs = {int(i): float(value) for i, value in zip(found.ids, found.logprobs, strict=True)}
    logprobs.setdefault(found.token, found.logprob)
    if any(math.isnan(value) for value in logprobs.values()):
        raise undefined_logits(name)
    best = max(logprobs.values())
    return {token: Likelihood(max(value, LEAST), value >= best) for token, value in logprobs.items()}


def grouped(pairs: Sequence[Pair]) -> Iterable[list[int]]:
    """The numbers of the pairs, those of one context together, and contexts that begin alike one after the other.

    A context of one token takes no time to read, so that its continuations need not wait for one another.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for place in sorted(range(len(pairs)), key=pairs.__getitem__):
        context = tuple(pairs[place].context)
        groups.setdefault(context if len(context) > 1 else (*context, -1, place), []).append(place)
    return groups.values()


async def check_forcing(servers: LlamaServers, prefix: int) -> None:
    """Refuse a server that reports other log-probabilities for a token that is made to follow.

    Raises
    ------
    EngineError
        It reports others, or none.
    """
    for before in ([prefix], [servers.end]):
        session = ServerSession()
        for _ in range(PROBES):
            reply = await servers.complete(session, before, {"temperature": 0, "n_predict": 1, "n_probs": CANDIDATES})
            for free in reply.distributions:
                for token in reversed(free.ids.tolist()):
                    forced = await servers.forced(session, before, token, CANDIDATES)
                    if forced is not None:
                        require_equal(servers.name, token, free, forced)
                        return
            before = before + reply.tokens
    raise EngineError(f"{servers.name}: the llama-server reports no probabilities (n_probs); use a newer one.")


def require_equal(name: str, token: int, free: Distribution, forced: Distribution) -> None:
    """Compare what a server reports of a token that was made to follow with what it reports of it by itself."""
    expected = free.logprob_of(token)
    assert expected is not None
    if math.isnan(expected) or math.isnan(forced.logprob):
        raise undefined_logits(name)
    if forced.token != token or abs(forced.logprob - expected) > TOLERANCE:
        reported = f"{forced.logprob:.2f}" if forced.token == token else "none"
        raise EngineError(
            f"{name}: likelihoods cannot be had from this llama-server: the log-probability of a token that logit_bias "
            f"makes follow is reported as {reported}, and that of the same one as {expected:.2f} otherwise; use a "
            "newer server, or name a role with another backend in loglikelihood=…"
        )
