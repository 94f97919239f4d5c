"""Asks the loaded models what requests ask: at most so many answers at once, each of which can be cancelled.

Requests are handled in the server's event loop, questions are answered in that of the engines
(`AnsweringLM.submit`), and what both need of tokenizers and templates happens in threads.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
import secrets
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from lm_eval_tandem.cascade.prompts import prompt_of
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.cascade.watcher import SILENT, Watcher
from lm_eval_tandem.engines import Sampling
from lm_eval_tandem.engines.tokenizer import LONG_PROMPT, LocalTokenizer
from lm_eval_tandem.errors import CallError, ContextError, EngineError, UnreachableError
from lm_eval_tandem.harness.answering import AnsweringLM
from lm_eval_tandem.harness.requests import sampling_of
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.server import prompts
from lm_eval_tandem.server.errors import busy, refusal, stopping
from lm_eval_tandem.server.listener import Listener
from lm_eval_tandem.server.offers import Offer, Offers
from lm_eval_tandem.server.protocol import Asked
from lm_eval_tandem.server.scoring import cannot_read, score_prompt
from lm_eval_tandem.server.work import Answered, Job, Limits, Work

log = logging.getLogger(__name__)

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names by which a configuration's gen_kwargs may give the length of answers."""
SHORT = 2_000
"""Characters of prompts that are tokenized in the server's event loop itself: it takes about a millisecond."""


class Service:
    """The loaded models, as requests see them.

    Parameters
    ----------
    lm
        The loaded models.
    limits
        Of requests.
    gen_kwargs
        Of the configuration: they hold where a request says nothing else.
    system
        The configuration's system instruction, "" for none.
    falls_back
        Whether the intern answers alone where the mentor cannot be reached or fails.

    Attributes
    ----------
    offers
        The names that may be asked for.
    under_way
        Number of answers that are being made.
    """

    def __init__(
        self,
        lm: AnsweringLM,
        limits: Limits,
        gen_kwargs: Mapping[str, Any] | None = None,
        system: str = "",
        falls_back: bool = False,
    ) -> None:
        self.lm, self.limits, self.offers = lm, limits, Offers(lm)
        self.under_way = 0
        given = {"until": [], **(gen_kwargs or {})}
        self._sampling = sampling_of(given, lm.max_answer_tokens, lm.settings.seed)
        self._has_length = any(given.get(name) is not None for name in LENGTHS)
        self._system = system
        self._fallback = self.offers.find("tandem/intern") if falls_back else None
        self._numbers = itertools.count()
        self._has_quick_tokenizers = all(
            isinstance(engine, LocalTokenizer) and getattr(engine.lm.tokenizer, "is_fast", False)
            for engine in lm.engines.values()
            if engine is not None
        )
        self._open: set[Work] = set()
        self._warned: set[str] = set()
        self._is_stopping = False
        self._preparing = 0
        """Number of requests that are prepared in threads, which hold the tokenizers meanwhile."""
        self._long_prompts = asyncio.Semaphore(1)

    async def begin(self, asked: Asked) -> Work:
        """Start the answers of a request; whoever gets them calls `end` afterwards.

        Raises
        ------
        RequestError
            It cannot be answered, or not now.
        TandemError
            It does not fit into a window, or cannot be rendered.
        """
        if self._is_stopping:
            raise stopping()
        offer = self.offers.find(asked.model)
        self._check(asked, offer)
        if self.under_way + asked.answers > self.limits.max_requests:
            raise busy(f"{self.under_way} answers are under way, and no more at once; try again in a moment.")
        self.under_way += asked.answers
        work = Work(asked, offer, secrets.randbits(31) if asked.seed is None else asked.seed)
        self._open.add(work)
        try:
            work.jobs = await self._prepared(work)
            if self._is_stopping:
                raise stopping()
            for job in work.jobs:
                self._start(work, job)
        except BaseException:
            await self.end(work)
            raise
        return work

    async def _prepared(self, work: Work) -> list[Job]:
        """The answers to make. Tokenizing a short prompt takes less time than a thread for it, a long one far more.

        Of long prompts, which hold the tokenizers for long, one at a time is prepared, so that short ones come between.
        """
        size = prompts.characters(work.asked.prompts)
        if size <= SHORT and self._has_quick_tokenizers and not self._preparing:
            return self._jobs(work)
        self._preparing += 1
        try:
            async with self._long_prompts if size > LONG_PROMPT else nullcontext():
                return await asyncio.to_thread(self._jobs, work)
        finally:
            self._preparing -= 1

    async def end(self, work: Work) -> None:
        """Cancel what still runs of a request, wait until nothing does, and make room for others; once.

        All of that happens even where the caller is cancelled meanwhile.
        """
        left = work.cancel()
        if left:
            await asyncio.shield(self._end_later(work, left))
        else:
            self._make_room(work)

    async def _end_later(self, work: Work, left: Sequence[concurrent.futures.Future[Answered]]) -> None:
        await asyncio.gather(*map(asyncio.wrap_future, left), return_exceptions=True)
        self._make_room(work)

    def _make_room(self, work: Work) -> None:
        if not work.has_ended:
            work.has_ended = True
            self.under_way -= work.asked.answers
            self._open.discard(work)

    def break_off(self) -> int:
        """Let every request that is not complete fail, and all later ones; returns the number of the former."""
        self._is_stopping = True
        for work in self._open:
            work.break_off(stopping())
        return len(self._open)

    def _check(self, asked: Asked, offer: Offer) -> None:
        longest, most = self.limits.max_tokens, self.limits.max_requests
        if longest is not None and asked.max_tokens is not None and asked.max_tokens > longest:
            raise refusal(f"max_tokens is {asked.max_tokens}, but at most {longest} here; lower it.", "max_tokens")
        if asked.answers > most:
            raise refusal(f"{asked.answers} answers were asked for at once, but at most {most} can be; ask for fewer.")
        if asked.logprobs is None:
            return
        if asked.echo and asked.stream:
            raise refusal("echo with logprobs cannot be streamed; leave out stream.", "stream")
        if asked.echo and not isinstance(offer.reader, LocalTokenizer):
            raise cannot_read()
        if not asked.echo and offer.cannot_measure:
            raise refusal(f"{offer.cannot_measure}; leave logprobs out, or use another model.", "logprobs")
        sampling = self._sampling_of(asked)
        if asked.logprobs and (sampling.temperature > 0 or sampling.repetition_penalty not in (None, 1)):
            raise refusal(
                "logprobs: 1 is for greedy answers without a repetition_penalty; use logprobs: 0.",
                "logprobs",
            )

    def _sampling_of(self, asked: Asked) -> Sampling:
        return replace(self._sampling, **asked.sampling)

    def _jobs(self, work: Work) -> list[Job]:
        """The answers to make. Tokenizers take their time with long prompts."""
        try:
            return [job for prompt in work.asked.prompts for job in self._jobs_of(work, prompt)]
        except EngineError as error:  # a model's chat template does not accept the conversation
            raise refusal(str(error), "messages" if work.asked.is_chat else "prompt") from error

    def _jobs_of(self, work: Work, prompt: Any) -> list[Job]:
        asked, offer = work.asked, work.offer
        question = prompts.question(prompt, self.lm, offer.reader, self._system)
        sampling = replace(self._sampling_of(asked), seed=work.seed)
        task = Task(question, sampling)
        size = prompts.check_size(prompt_of(offer.reader, question), offer.reader)
        scored = None
        if asked.echo and asked.logprobs is not None:
            scored = prompts.prompt_to_score(prompt, offer.reader)
        length = self._sampling.max_tokens if asked.max_tokens is None and self._has_length else asked.max_tokens
        if length is None:
            length = offer.longest_answer(task) if scored is None else offer.reader.window - size
            if length < 1:
                raise ContextError(
                    f"the prompt has {size} tokens, {1 - length} too many for an answer of {asked.model} to fit into "
                    "the models' windows beside it; send a shorter one."
                )
        length = min(length, self.limits.max_tokens or length)
        task = replace(task, sampling=replace(sampling, max_tokens=max(1, length)))
        if scored is None and length:
            offer.check_fits(task)
        echoed = question.text if asked.echo else None
        # Sampling depends on the seed and the number among the answers to one prompt, so that a request that is sent
        # again gets the same answers; `copy` alone tells sessions apart.
        return [
            Job(replace(task, repeat=repeat, copy=next(self._numbers) + 1), size, echoed, scored, length > 0)
            for repeat in range(asked.n)
        ]

    def _start(self, work: Work, job: Job) -> None:
        asked, listener = work.asked, None
        if asked.stream or asked.insights:
            listener = Listener(work.news.tell if asked.stream else lambda: None, asked.insights, asked.events)
        running = self.lm.submit(self._answer(work, job, listener))
        work.listeners.append(listener)
        work.running.append(running)
        if asked.stream:
            running.ended.add_done_callback(lambda _: work.news.tell())

    # In the event loop of the engines

    async def _answer(self, work: Work, job: Job, listener: Listener | None) -> Answered:
        if job.scored is not None:
            return await score_prompt(work, job, job.scored)
        if not job.is_answered:
            return Answered(job.echoed or "", "length", None, "reader", job.prompt_tokens, 0)
        try:
            return await self._ask(work, job, work.offer, listener)
        except (UnreachableError, CallError) as error:
            begun = listener is not None and listener.answer
            if self._fallback is None or begun or not work.offer.has_intern:
                raise
            try:
                answered = await self._ask(work, job, self._fallback, listener)
            except EngineError:
                raise error from None  # it is not the mentor, or not it alone
            return replace(answered, is_fallback=True)

    async def _ask(self, work: Work, job: Job, offer: Offer, listener: Listener | None) -> Answered:
        answerer, measuring = offer.answerer, None
        if work.asked.logprobs is not None:
            if offer.cannot_measure:
                raise refusal(f"{offer.cannot_measure}; leave logprobs out, or use another model.", "logprobs")
            assert offer.measured is not None
            answerer, measuring = offer.measured()
        watcher: Watcher = SILENT if listener is None else listener
        text, record = await answerer.answer(job.task, watcher)
        self._warn(record)
        return Answered(
            text=(job.echoed or "") + text,
            finish_reason=record.finish_reason or "stop",
            record=record,
            policy=offer.kind,
            prompt_tokens=job.prompt_tokens,
            completion_tokens=offer.answer_tokens(record),
            insight=listener.insight if listener is not None else "",
            tokens=None if measuring is None else measuring.answer(text),
        )

    def _warn(self, record: Record) -> None:
        """Warn of what the harness warns of at the end of a run, once for each kind: at its first answer."""
        for kind, sentence in self.lm.warnings([record]).items():
            if kind not in self._warned:
                self._warned.add(kind)
                log.warning("%s", sentence)
