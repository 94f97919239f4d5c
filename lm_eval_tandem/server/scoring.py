"""`echo` with `logprobs`: one model reads the prompt, measures its tokens, and goes on with it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

from lm_eval_tandem.engines import DEFAULT_VIEW, Prompt, ScoringView
from lm_eval_tandem.errors import ViewError
from lm_eval_tandem.server import prompts
from lm_eval_tandem.server.errors import RequestError, refusal
from lm_eval_tandem.server.measuring import measured_tokens
from lm_eval_tandem.server.work import Answered, Job, Work

CONFIDENT = ScoringView(confidence=True)


async def score_prompt(work: Work, job: Job, prompt: Prompt) -> Answered:
    """The prompt's tokens and those of an answer, measured by one model alone.

    Raises
    ------
    RequestError
        The model's engine cannot do that.
    """
    reader, session = work.offer.reader, job.task.session
    if await asyncio.to_thread(lambda: reader.cannot_score):  # some find out by a call
        raise cannot_read()
    prompt, completion = replace(prompt, session=session), None
    try:
        stats = await reader.score(prompt, CONFIDENT if work.asked.logprobs else DEFAULT_VIEW)
        if job.is_answered:
            sampling = replace(job.task.sampling_for("reader", 0), return_token_stats=True)
            completion = await reader.generate(prompt, sampling)
    except ViewError as error:
        raise refusal(
            "the backend of the model that reads prompts here does not report which tokens would be likeliest "
            "(hf does); with echo, use logprobs: 0.",
            "logprobs",
        ) from error
    finally:
        reader.release(session)
    ids = [*reader.encode(prompt.text), *prompt.continued]
    best = [math.nan] * len(ids) if stats.confidence is None else stats.confidence.tolist()
    decode = prompts.tokenizer_of(reader, ids).text_of
    tokens = measured_tokens(decode, ids, stats.logprob.tolist(), best)
    if completion is not None:
        assert completion.logprob is not None
        tokens += measured_tokens(reader.decode, completion.token_ids, completion.logprob.tolist())
    return Answered(
        text=(job.echoed or "") + ("" if completion is None else completion.text),
        finish_reason="length" if completion is None else completion.finish_reason,
        record=None,
        policy="reader",
        prompt_tokens=len(ids),
        completion_tokens=0 if completion is None else completion.new_tokens,
        tokens=tokens,
    )


def cannot_read() -> RequestError:
    """The refusal of `echo` with `logprobs` where the model that reads prompts cannot measure them."""
    return refusal(
        "the model that reads prompts here reports no log-probabilities of their tokens; leave out echo or logprobs.",
        "logprobs",
    )
