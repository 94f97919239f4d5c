"""A scorer behind an HTTP server of any kind, such as one that runs a reward model which transformers does not.

One request holds the candidates of one question: `{"question": …, "messages": [{"role": …, "content": …}] or null,
"begun": …, "candidates": [texts]}`. The reply is `{"scores": [numbers]}`, one for each candidate, and may also hold
`"tokens"`, the number of tokens read for each, and `"dollars"`, the price of the request.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import openai

from lm_eval_tandem.engines import Messages
from lm_eval_tandem.engines.http.client import CONNECT_TIMEOUT, PUBLIC_HEADERS
from lm_eval_tandem.engines.http.failures import ErrorReader, Failure, error_in, error_text, without_page
from lm_eval_tandem.engines.http.options import Options, check_url
from lm_eval_tandem.engines.http.retries import Reachability, Retries
from lm_eval_tandem.engines.rating import Candidate, Score
from lm_eval_tandem.errors import ArgumentError, CallError, UnreachableError, one_line

FORM = '{"scores": [numbers]}'
"""What a reply has to be, for messages."""


class HTTPScorer:
    """A scorer (see `rating.Scorer`) behind a server.

    Connections belong to the event loop that is running; when the scorer is used from another loop, it connects anew.

    Parameters
    ----------
    url
        Address to which requests are posted.
    api_key_env
        Name of the environment variable that holds the API key, which is sent as a Bearer token; None for no key.
    timeout
        Seconds to wait for a reply.
    retries
        Number of times that a failed request is tried again.
    give_up
        Seconds without a reply to any request after which the run ends.

    Raises
    ------
    ArgumentError
        The address is no web address or contains a secret, or the environment variable is not set.

    Examples
    --------
    >>> scorer = HTTPScorer("http://127.0.0.1:8100/score")
    >>> [score] = await scorer.score([Candidate("1 + 1 = ?", None, "", "It is 2.", {}, "q1")])
    """

    parameters = None

    def __init__(
        self,
        url: str,
        api_key_env: str | None = None,
        timeout: float = 60.0,
        retries: int = 12,
        give_up: float = 30.0,
    ) -> None:
        self.name = url
        self.identity = {"scorer": "http", "url": url}
        self._options = scorer_options(url, api_key_env, timeout=timeout, retries=retries, give_up=give_up)
        self._key = key_of(self._options)
        self._reachability = Reachability(self._options.model, give_up)
        self._errors = ErrorReader(self._options, self._key, self._reachability.report_reply)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: openai.AsyncOpenAI | None = None
        self._slots = asyncio.Semaphore(self._options.concurrency)

    async def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """See `rating.Scorer.score`."""
        groups: dict[tuple[str, Messages | None, str], list[int]] = {}
        for i, one in enumerate(candidates):
            groups.setdefault((one.question, one.messages, one.begun), []).append(i)
        rated = await asyncio.gather(*(self._rate([candidates[i] for i in group]) for group in groups.values()))
        scores = {
            i: score
            for group, results in zip(groups.values(), rated, strict=True)
            for i, score in zip(group, results, strict=True)
        }
        return [scores[i] for i in range(len(candidates))]

    def close(self) -> None:
        """See `rating.Scorer.close`; called from any thread."""
        client, self._client = self._client, None
        if client is not None and self._loop is not None and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(client.close(), self._loop)

    async def _rate(self, candidates: Sequence[Candidate]) -> list[Score]:
        """The scores of candidates that share question and beginning, by one request."""
        first, started = candidates[0], time.perf_counter()
        messages = first.messages and [{"role": role, "content": content} for role, content in first.messages]
        body = {
            "question": first.question,
            "messages": messages,
            "begun": first.begun,
            "candidates": [candidate.text for candidate in candidates],
        }
        retries = Retries(self._options, self._reachability, first.session, self._errors.without_key)
        while True:
            try:
                client = self._connected()
                async with self._slots:
                    retries.start()
                    reply = await self._post(client, body)
                values, tokens, dollars = parse_reply(reply, len(candidates))
                break
            except Failure as failure:
                await self._wait_after(failure, retries)
        seconds = (time.perf_counter() - started) / len(candidates)
        return [Score(value, n, seconds, dollars) for value, n in zip(values, tokens, strict=True)]

    async def _wait_after(self, failure: Failure, retries: Retries) -> None:
        """Wait until the next attempt is due; without one the question has failed, or the run where no server is."""
        try:
            await retries.wait_after(failure)
        except CallError as error:
            if failure.unreached:
                raise UnreachableError(f"{error}; check that it runs, then start the same command again.") from failure
            raise

    async def _post(self, client: openai.AsyncOpenAI, body: Mapping[str, Any]) -> str:
        """The body of the server's reply to one request.

        Raises
        ------
        Failure
            No reply.
        UnreachableError
            The server refuses the key, or its account has no credit.
        """
        unsent = PUBLIC_HEADERS if self._key else (*PUBLIC_HEADERS, "Authorization")
        headers = {"headers": dict.fromkeys(unsent, openai.Omit())}
        try:
            async with asyncio.timeout(self._options.timeout):  # not `wait_for`, as in `ServerPool.post`
                reply = await client.post(self.name, body=body, options=headers, cast_to=str)
        except openai.AuthenticationError as error:
            variable, said = self._options.api_key_env, self._errors.message(error)
            step = f"set {variable} to a valid one" if variable else "name its environment variable in api_key_env=…"
            raise UnreachableError(
                f"{self._options.model} {'refuses the key' if variable else 'wants a key'} (401): {said}; {step}."
            ) from error
        except Exception as error:  # the client raises many kinds of exceptions, which `failure` distinguishes
            raise self._errors.failure(error) from error
        self._reachability.report_reply()
        return str(reply)

    def _connected(self) -> openai.AsyncOpenAI:
        """The client of the running event loop."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._loop = loop
            self._slots = asyncio.Semaphore(self._options.concurrency)
            self._client = openai.AsyncOpenAI(
                base_url=self.name,
                api_key=self._key or "none",
                max_retries=0,
                timeout=openai.Timeout(self._options.timeout, connect=CONNECT_TIMEOUT),
            )
        return self._client


def scorer_options(url: str, api_key_env: str | None, **limits: float) -> Options:
    """The options of the server at an address; `limits` are its timeout, retries and give_up.

    Raises
    ------
    ArgumentError
        It is no single web address or contains a secret, or a limit has a wrong value.
    """
    try:
        check_url(url)
    except ArgumentError as error:  # an engine's address has another name
        raise ArgumentError(str(error).replace("base_url", "scorer", 1)) from None
    if ";" in url:
        raise ArgumentError(f"scorer={url} contains a semicolon; give the address of one server.")
    return Options.read(f"the scorer {url}", {"base_url": url, "api_key_env": api_key_env, **limits})


def key_of(options: Options) -> str:
    """The API key from the environment variable that the options name; "" where they name none.

    Raises
    ------
    ArgumentError
        The variable is not set.
    """
    return options.key() if options.api_key_env else ""


def parse_reply(reply: str, n: int) -> tuple[list[float], list[int], float | None]:
    """Scores and tokens of n candidates, and the dollars of each, from the body of a reply.

    Raises
    ------
    Failure
        The reply has another form; asking again would not help.
    """
    try:
        content = json.loads(reply)
    except (ValueError, RecursionError) as error:  # the latter for JSON that is nested too deeply
        shown = one_line(without_page(reply), 100) or "nothing"
        raise Failure(f"the reply has to be {FORM}, and is {shown}", retryable=False) from error
    if error_in(content) is not None:
        raise Failure(f"the server reported an error: {one_line(error_text(error_in(content)))}", retryable=False)
    scores = content.get("scores") if isinstance(content, Mapping) else None
    if not isinstance(scores, list):
        raise Failure(f"the reply has to be {FORM}, and is {one_line(reply, 100)}", retryable=False)
    if len(scores) != n:
        raise Failure(f"the reply has {len(scores)} scores for {n} candidates; it needs one for each", retryable=False)
    unfit = [score for score in scores if not is_number(score)]
    if unfit:
        raise Failure(f"the reply has the score {one_line(unfit[0], 100)}, which is no finite number", retryable=False)
    tokens = content.get("tokens")
    counted = isinstance(tokens, list) and len(tokens) == n and all(is_number(one) and one >= 0 for one in tokens)
    if tokens is not None and not counted:
        raise Failure(
            f"the reply's tokens have to be a list of {n} numbers, and are {one_line(tokens, 100)}",
            retryable=False,
        )
    dollars = content.get("dollars")
    if dollars is not None and not (is_number(dollars) and dollars >= 0):
        raise Failure(
            f"the reply's dollars have to be one number, for all candidates, and are {one_line(dollars, 100)}",
            retryable=False,
        )
    return (
        [float(score) for score in scores],
        [int(one) for one in tokens] if tokens is not None else [0] * n,
        None if dollars is None else dollars / n,
    )


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a finite number."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
