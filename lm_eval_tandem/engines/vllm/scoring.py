"""Judge passes in vLLM: the statistics of a prompt's tokens, reading only those that are new.

A pass reads from vLLM's prefix cache. vLLM returns no logprobs for tokens that it finds there, so their statistics are
those of the session's pass before, which are kept here. The cache of a session's passes is therefore kept apart from
everything else by a salt: what other questions left in the cache would have no statistics.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from lm_eval_tandem.engines import EngineWork
from lm_eval_tandem.engines.drafts import common_prefix_length
from lm_eval_tandem.engines.entropy import EntropyMethod, Values
from lm_eval_tandem.engines.vllm.async_llm import VERSION
from lm_eval_tandem.engines.vllm.entropy_check import WAY_ON
from lm_eval_tandem.errors import EngineError


@dataclass
class Session:
    """What vLLM has read for one question.

    Attributes
    ----------
    salt
        Goes into the keys of the prefix cache; see this module.
    read
        The tokens last read or generated, which the prefix cache holds until it needs the room.
    scored
        The tokens of the last judge pass.
    logprob, entropy
        Their statistics.
    """

    salt: str
    read: list[int] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    logprob: Values = field(default_factory=lambda: np.empty(0, np.float32))
    entropy: Values = field(default_factory=lambda: np.empty(0, np.float32))

    def count(self, work: EngineWork, ids: list[int], cached: int, generated: tuple[int, ...]) -> None:
        """Add a request to the totals and remember its tokens.

        Parameters
        ----------
        work
            The totals.
        ids
            The request's prompt.
        cached
            Number of its leading tokens that vLLM found in the prefix cache.
        generated
            New tokens that vLLM has also read.
        """
        work.prefill_tokens += len(ids) - cached
        work.recomputed_tokens += max(0, common_prefix_length(self.read, ids) - cached)
        self.read = [*ids, *generated]


@dataclass(frozen=True)
class Scorer:
    """Scores prompts.

    Attributes
    ----------
    send
        Sends a request with the session's salt: takes token ids, parameters and session; its result is vLLM's
        `RequestOutput`.
    method
        How entropies are obtained.
    vocabulary
        Number of tokens of the vocabulary.
    block
        Number of tokens in a block of the prefix cache.
    work
        Totals that passes are added to.
    """

    send: Callable[[list[int], SamplingParams, Session], Awaitable[Any]]
    method: EntropyMethod
    vocabulary: int
    block: int
    work: EngineWork

    async def score(self, session: Session, ids: list[int]) -> int:
        """Set `session.scored`, `logprob` and `entropy` to those of the prompt `ids`.

        Returns
        -------
        int
            Number of leading tokens whose statistics are those of the pass before.
        """
        known = common_prefix_length(session.scored, ids)
        stats = None
        if known:
            # Where the texts diverge at the end of a block, the cache holds all known tokens, and the logits after the
            # last of them, which give the statistics of the next token, are not computed.
            at_block_end = known < len(ids) and known % self.block == 0
            next_token = await self._next_token(session, ids[:known], ids[known]) if at_block_end else None
            stats = await self._pass(session, ids, known, next_token)
        if stats is None:
            stats = await self._pass(session, ids, 0)
        if stats is None:
            raise EngineError(f"vLLM {VERSION} read its prefix cache although the request forbade it; {WAY_ON}.")
        session.scored, (session.logprob, session.entropy, cached) = ids, stats
        return cached

    async def _next_token(self, session: Session, ids: list[int], token: int) -> tuple[float, float]:
        """Log-probability and entropy of a token after tokens that were read before; reads their last block again.

        vLLM returns these for tokens that it generates, so it has to generate this one.
        """
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            allowed_token_ids=[token],
            logprobs=self.method.columns,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self.send(ids, params, session)
        read = len(ids) - (output.num_cached_tokens or 0)
        self.work.prefill_tokens += read
        self.work.recomputed_tokens += read
        logprob, entropy, valid = self.method.read(output.outputs[0].logprobs, self.vocabulary)
        check_valid(valid)
        return float(logprob[0]), float(entropy[0])

    async def _pass(
        self, session: Session, ids: list[int], known: int, next_token: tuple[float, float] | None = None
    ) -> tuple[Values, Values, int] | None:
        """One judge pass.

        Parameters
        ----------
        session
            Its statistics are those of the known tokens.
        ids
            The prompt.
        known
            Number of leading tokens whose statistics the session has; 0 reads the whole prompt without the cache.
        next_token
            Statistics of the token after them, where they are known.

        Returns
        -------
        tuple or None
            Log-probabilities and entropies of all tokens, and the number of leading tokens found in the cache. None
            where the cache held more tokens than have known statistics.
        """
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=self.method.columns,
            flat_logprobs=True,
            detokenize=False,
            skip_reading_prefix_cache=known == 0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self.send(ids, params, session)
        cached = output.num_cached_tokens or 0
        session.count(self.work, ids, cached, ())
        if cached and cached >= known + (next_token is not None):
            return None
        logprob, entropy = np.full((2, len(ids)), np.nan, dtype=np.float32)
        if len(ids) > 1:
            new_logprob, new_entropy, valid = self.method.read(output.prompt_logprobs, self.vocabulary)
            # Row i holds the statistics of token i + 1. For cached tokens, one of vLLM's runners leaves rows
            # unwritten, the other leaves them out.
            left_out = len(ids) - 1 - len(new_logprob)
            check_valid(valid[max(cached - left_out, 0) :] & (left_out <= cached))
            logprob[1 + left_out :], entropy[1 + left_out :] = new_logprob, new_entropy
        if cached:
            # The first row that was computed is that of token `cached`; it holds the statistics of the token after it.
            old = min(cached + 1, known)
            logprob[:old], entropy[:old] = session.logprob[:old], session.entropy[:old]
        if cached and cached == known and next_token is not None:
            logprob[known], entropy[known] = next_token
        return logprob, entropy, cached


def check_valid(valid: NDArray[np.bool_]) -> None:
    """Refuse statistics that vLLM has left unwritten.

    Raises
    ------
    EngineError
        Not all of them are valid.
    """
    if not valid.all():
        raise EngineError(
            f"vLLM {VERSION} returned {int((~valid).sum())} of {valid.size} tokens without an exact entropy; {WAY_ON}."
        )
