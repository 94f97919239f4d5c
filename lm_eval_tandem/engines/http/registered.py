"""The engine for any other model that is registered with lm_eval, as a mentor, through its own `generate_until`.

A stage is continued by a call with the prompt and the text so far and with the stage's own budget, so the mentor
really stops early. A model that accepts only conversations as JSON is asked in a further message to continue.

Such models report neither tokens nor why they stopped. Tokens are counted by the model's tokenizer, otherwise
estimated (`text.BYTES_PER_TOKEN`); a text of less than `ENDED_SHARE` of its budget counts as ended.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.api_models import JsonChatStr

from lm_eval_tandem.engines import (
    DEFAULT_VIEW,
    Completion,
    EngineWork,
    Messages,
    Prompt,
    Sampling,
    ScoringView,
    TokenStats,
)
from lm_eval_tandem.engines.http.daemon_thread import DaemonThread
from lm_eval_tandem.engines.http.options import IGNORED, UNKNOWN_WINDOW
from lm_eval_tandem.engines.http.text import (
    CONTINUE_REQUEST,
    TextOnlyLM,
    TokenCounter,
    decode_chat,
    decode_reply,
    encode_chat,
    encode_reply,
    plain_text,
)
from lm_eval_tandem.engines.limits import check_window
from lm_eval_tandem.engines.settled import settled_text
from lm_eval_tandem.engines.stopping import answer_text
from lm_eval_tandem.errors import CallError, EngineError, loading, one_line

log = logging.getLogger(__name__)

DEFAULT_BATCH = 16
"""Number of questions in one call of a model that has no batch size."""
ENDED_SHARE = 0.8
"""A text of less than this share of its budget has ended by itself; estimates are not exact enough for more."""
NAMED_PARAMETERS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def constructor_arguments(backend: str) -> set[str] | None:
    """Names of the arguments of the registered model's constructors; None where no model is registered as `backend`."""
    try:
        model = get_model(backend)
    except (ValueError, ImportError):
        return None
    names: set[str] = set()
    for kind in model.__mro__:
        if "__init__" in vars(kind):
            parameters = inspect.signature(kind.__init__).parameters
            names |= {name for name, parameter in parameters.items() if parameter.kind in NAMED_PARAMETERS}
    return names - {"self"}


Waiting = tuple[Instance, "asyncio.Future[str]"]
"""A request, and the future of who waits for its text."""


class RegisteredEngine:
    """An engine (see `engines.Engine`) on a model registered with lm_eval; it cannot score.

    Calls that wait are handed to the model in one batch, one batch after the other, in a thread.

    Parameters
    ----------
    backend
        Name under which the model is registered.
    model
        Value of its argument `pretrained` or `model`, if it has one of them.
    arguments
        The model's own arguments, and `parameters` (number of its parameters, for Eq. 12).

    Raises
    ------
    EngineError
        The model cannot be loaded.
    """

    reads_drafts = False
    _warned = False

    def __init__(self, backend: str, model: str, arguments: Mapping[str, Any]) -> None:
        self.name, self.backend = model, backend
        accepted = constructor_arguments(backend) or set()
        given = {name: value for name, value in arguments.items() if name in accepted}
        name_argument = next((name for name in ("pretrained", "model") if name in accepted), None)
        named = {name_argument: model} if name_argument else {}
        with loading(f"the model {model} (backend={backend})"):
            self._model: Any = get_model(backend)(**named, **given)
        self.parameters = parameters_of(self._model, arguments.get("parameters"))
        self.window = int(getattr(self._model, "max_length", None) or UNKNOWN_WINDOW)
        size = str(getattr(self._model, "batch_size", DEFAULT_BATCH))
        batch_size = int(size) if size.isdecimal() else DEFAULT_BATCH
        self.max_concurrency = max(batch_size, int(getattr(self._model, "_concurrent", 1)))
        self.work = EngineWork()
        self.identity = {
            "engine": f"lm_eval {backend}",
            "lm_eval": version("lm_eval"),
            "model": model,
            "arguments": {name: str(value) for name, value in sorted(given.items()) if name not in IGNORED},
        }
        self.lm = RegisteredLM(model, self._model, self.window)
        self._counter = TokenCounter()
        self._tokenizer = tokenizer_of(self._model)
        self._queue: list[Waiting] = []
        self._task: asyncio.Task[None] | None = None
        self._threads: set[DaemonThread] = set()
        self._takes_seed = takes_seed(self._model)
        self._calls = max(1, int(getattr(self._model, "_concurrent", 1))) if self._takes_seed else 1
        self._slots = threading.BoundedSemaphore(self._calls)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """See `Engine.generate`. Raises CallError when the model fails or generates nothing."""
        if sampling.return_token_stats:
            raise EngineError(self.cannot_measure)
        if sampling.temperature > 0 and not self._takes_seed and not self._warned:
            self._warned = True
            log.warning("backend=%s takes no seed: answers that are sampled differ from run to run.", self.backend)
        started = time.perf_counter()
        so_far = decode_reply(prompt.continued)
        prompt_tokens = len(self.encode(prompt.text)) + self._count(so_far)
        check_window(self.name, self.window, prompt_tokens, sampling.max_tokens)
        text = await self._submit(self._context(prompt.text, so_far), sampling)
        if not text and not so_far:
            raise CallError(f"{self.name} (backend={self.backend}) generated no text.")
        new = min(self._count(text), sampling.max_tokens)
        ended = not text or new < ENDED_SHARE * sampling.max_tokens
        self.work.prefill_tokens += prompt_tokens
        self.work.recomputed_tokens += prompt_tokens if so_far else 0
        self.work.decode_tokens += new
        return Completion(
            text=text,
            token_ids=encode_reply(text),
            finish_reason="stop" if ended else "length",
            prompt_tokens=prompt_tokens,
            cached_tokens=0,
            seconds=time.perf_counter() - started,
            counted=new,
        )

    async def score(self, prompt: Prompt, view: ScoringView = DEFAULT_VIEW) -> TokenStats:
        """See `Engine.score`. Always raises EngineError, because these models report no entropies."""
        raise EngineError(self.cannot_score)

    @property
    def cannot_score(self) -> str:
        """Why this engine cannot score prompts."""
        return (
            f"backend={self.backend} returns text alone, so {self.name} cannot be the intern of a judge; "
            "run the intern with intern_backend=hf or vllm, or use policy=stage:N, which needs no judge."
        )

    @property
    def cannot_measure(self) -> str:
        """Why this engine reports no statistics of generated tokens."""
        return self.cannot_score

    def stop(self, session: str) -> None:
        """See `Engine.stop`. Nothing is generated between calls."""

    def release(self, session: str) -> None:
        """See `Engine.release`. Nothing is kept for a session."""

    def render(self, messages: Messages, generation_prompt: bool = True) -> str:
        """See `Engine.render`: the messages as `text.encode_chat` represents them; `generate` applies the template."""
        return encode_chat(messages, generation_prompt)

    def encode(self, text: str) -> list[int]:
        """See `Engine.encode`: by the model's tokenizer, otherwise an estimate."""
        plain = plain_text(*decode_chat(text))
        ids = self._tokens(plain)
        return self._counter.encode(plain) if ids is None else ids

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """See `Engine.decode`."""
        return decode_reply(token_ids)

    def answer_text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.answer_text`."""
        return answer_text(decode_reply(token_ids), stop)[0]

    def settled_text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.settled_text`."""
        return settled_text(decode_reply, token_ids, stop=stop)

    def close(self) -> None:
        """See `Engine.close`."""
        self._queue = []
        for thread in self._threads:
            thread.interrupt()

    def _count(self, text: str) -> int:
        ids = self._tokens(text)
        return self._counter.count(text) if ids is None else len(ids)

    def _tokens(self, text: str) -> list[int] | None:
        if self._tokenizer is None:
            return None
        return list(self._tokenizer.encode(text)) if text else []

    def _context(self, prompt_text: str, so_far: str) -> Any:
        """The prompt in the form that the model accepts, with the text generated so far."""
        messages, partial_answer = decode_chat(prompt_text)
        if messages is None:
            return prompt_text + so_far
        history = [{"role": role, "content": content} for role, content in messages]
        rendered = self._apply_template(history)
        if not isinstance(rendered, JsonChatStr):
            return rendered + partial_answer + so_far
        if partial_answer:
            raise EngineError(f"backend={self.backend} cannot continue a partial answer; use another policy.")
        if so_far:
            turns = [{"role": "assistant", "content": so_far}, {"role": "user", "content": CONTINUE_REQUEST}]
            rendered = self._apply_template([*history, *turns])
        return rendered

    def _apply_template(self, history: list[dict[str, str]]) -> Any:
        try:
            return self._model.apply_chat_template(history, add_generation_prompt=True)
        except NotImplementedError as error:
            raise EngineError(f"backend={self.backend} has no chat template; omit --apply_chat_template.") from error

    # One batch after the other, in one thread

    async def _submit(self, context: Any, sampling: Sampling) -> str:
        request = Instance(
            "generate_until",
            {},
            (context, generation_arguments(sampling, self._takes_seed)),
            idx=0,
            task_name="tandem",
            doc_id=0,
        )
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._queue.append((request, future))
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._process_queue())
        return await future

    async def _process_queue(self) -> None:
        await asyncio.sleep(0)  # calls that become ready in the same iteration of the event loop join the first batch
        while self._queue:
            waiting = [entry for entry in self._queue if not entry[1].done()]
            self._queue = []
            started = time.perf_counter()
            await asyncio.gather(*map(self._process_batch, self._batches(waiting)))
            self.work.generate_seconds += time.perf_counter() - started

    def _batches(self, waiting: list[Waiting]) -> list[list[Waiting]]:
        """All calls in one batch; where requests have a seed each, a model that sends several at once gets them singly.

        Such a model would send requests that differ in their arguments one after the other.
        """
        apart = self._calls > 1 and any("seed" in request.args[1] for request, _ in waiting)
        return [[entry] for entry in waiting] if apart else [waiting]

    async def _process_batch(self, batch: list[Waiting]) -> None:
        """Hand a batch to the model in a thread, and its texts or its error to those who wait."""
        thread = DaemonThread(f"tandem {self.name}", partial(self._run_batch, [request for request, _ in batch]))
        self._threads.add(thread)
        try:
            results = await thread.result()
        finally:
            self._threads.discard(thread)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, CallError):
                future.set_exception(result)
            else:
                future.set_result(result)

    def _run_batch(self, requests: list[Instance]) -> list[str | CallError]:
        """The model's texts, in the order of the requests; for each one that it has none for, an error."""
        if not requests:
            return []
        who = f"{self.name} (backend={self.backend})"
        try:
            with self._slots:
                texts = self._model.generate_until(requests, disable_tqdm=True)
            if not isinstance(texts, (list, tuple)) or len(texts) != len(requests):
                n = len(texts) if isinstance(texts, (list, tuple)) else "no"
                raise ValueError(f"it returned {n} texts for {len(requests)} questions")
        except (Exception, SystemExit) as error:  # a model of lm_eval may raise anything; only this batch fails
            reason = one_line(error) or type(error).__name__
            return [CallError(f"{who}: {reason}") for _ in requests]
        texts = ["" if text is None else text for text in texts]
        return [
            text if isinstance(text, str) else CallError(f"{who} returned {type(text).__name__} instead of text.")
            for text in texts
        ]


class RegisteredLM(TextOnlyLM):
    """lm-eval's model interface for a registered model; likelihoods and chat template are its own, where it has them.

    Parameters
    ----------
    name, window
        See `TextOnlyLM`.
    model
        The registered model.
    """

    def __init__(self, name: str, model: Any, window: int) -> None:
        super().__init__(name, window, int(getattr(model, "max_gen_toks", 256)))
        self._model = model

    def chat_template(self, chat_template: bool | str = False) -> str:
        """See `lm_eval.api.model.LM`."""
        own = getattr(self._model, "chat_template", None)
        return str(own(chat_template) or "") if callable(own) else ""

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See `lm_eval.api.model.LM`."""
        return self._likelihoods("loglikelihood", requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """See `lm_eval.api.model.LM`."""
        return self._likelihoods("loglikelihood_rolling", requests, disable_tqdm)

    def _likelihoods(self, method: str, requests: Any, disable_tqdm: bool) -> Any:
        try:
            return getattr(self._model, method)(requests, disable_tqdm=disable_tqdm)
        except NotImplementedError:
            self._refuse("likelihoods")


def tokenizer_of(model: Any) -> Any:
    """The model's own tokenizer; None where it has none, or none that can be loaded here."""
    try:
        tokenizer: Any = getattr(model, "tokenizer", None)
    except OSError as error:  # some models download it at the first access
        log.warning(
            "the tokenizer of %s cannot be loaded (%s); numbers of tokens are estimated.", type(model).__name__, error
        )
        return None
    return tokenizer if callable(getattr(tokenizer, "encode", None)) else None


def parameters_of(model: Any, given: Any) -> int | None:
    """Number of parameters: as given, or counted if the model holds a torch module; otherwise None."""
    if given is not None:
        return int(float(given))
    network: Any = getattr(model, "model", None)
    return sum(one.numel() for one in network.parameters()) if callable(getattr(network, "parameters", None)) else None


def takes_seed(model: Any) -> bool:
    """Whether a model takes a seed among the `generation_kwargs` of a request.

    Models of lm_eval that send requests to a server do if the body of a request has a seed, and vLLM's does. Others
    would refuse it, transformers' among them.
    """
    if any(kind.__module__ == "lm_eval.models.vllm_causallms" for kind in type(model).__mro__):
        return True
    body_of = getattr(model, "_create_payload", None)
    if not callable(body_of):
        return False
    try:
        return "seed" in body_of([{"role": "user", "content": "Hi"}], generate=True, gen_kwargs={}, seed=0)
    except Exception as error:  # models of lm_eval raise exceptions of any kind
        log.info("%s: whether a request takes a seed is unknown (%s)", type(model).__name__, error)
        return False


def generation_arguments(sampling: Sampling, seeded: bool) -> dict[str, Any]:
    """The sampling as `generation_kwargs` of lm-eval; with its seed where answers are sampled and `seeded`."""
    given: dict[str, Any] = {"until": list(sampling.stop), "max_gen_toks": sampling.max_tokens}
    if sampling.temperature == 0:
        return {**given, "do_sample": False, "temperature": 0.0}
    others = {name: getattr(sampling, name) for name in ("top_p", "top_k", "min_p", "repetition_penalty")}
    others = {name: value for name, value in others.items() if value is not None}
    others |= {"seed": sampling.seed} if seeded else {}
    return {**given, "do_sample": True, "temperature": sampling.temperature, **others}
