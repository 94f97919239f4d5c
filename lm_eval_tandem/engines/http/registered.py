"""Any other model of the harness as a mentor, through its own `generate_until`: text in, text out.

Its text grows by calls with the prompt and the text so far, each with the stage's own budget, so it really stops
early. A model that takes conversations as JSON alone is asked in a next turn to go on. Such models tell neither tokens
nor why they ended: tokens are counted by their tokenizer (else 4 bytes are taken for one), and a text of less than
four fifths of its budget counts as ended.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.api_models import JsonChatStr

from lm_eval_tandem.engines import DEFAULT_VIEW, Completion, Messages, Prompt, Sampling, ScoringView, TokenStats, Work
from lm_eval_tandem.engines.http.options import IGNORED, UNKNOWN_WINDOW
from lm_eval_tandem.engines.http.text import (
    CONTINUE_REQUEST,
    Counter,
    TextLM,
    cut,
    decode_chat,
    decode_reply,
    encode_chat,
    encode_reply,
)
from lm_eval_tandem.errors import CallError, ContextError, EngineError

log = logging.getLogger(__name__)

BATCH = 16
"""Questions handed over at once to a model that has no batch size of its own."""
ENDED = 0.8
"""A text of less than this share of its budget has ended by itself."""
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def accepted(backend: str) -> set[str] | None:
    """Arguments that the model registered as `backend` names in its constructors; None where none is registered."""
    try:
        model = get_model(backend)
    except (ValueError, ImportError):
        return None
    named: set[str] = set()
    for kind in model.__mro__:
        if "__init__" in vars(kind):
            named |= {name for name, one in inspect.signature(kind.__init__).parameters.items() if one.kind in NAMED}
    return named - {"self"}


class RegisteredEngine:
    """An engine (see `engines.Engine`) on a registered model of the harness; it cannot score.

    Parameters
    ----------
    backend
        The name under which it is registered.
    model
        Goes to its argument `pretrained` or `model`, if it has one.
    arguments
        Its own, and `parameters` (of the model, for Eq. 12).

    Raises
    ------
    EngineError
        The model cannot be made.
    """

    drafts = False

    def __init__(self, backend: str, model: str, arguments: Mapping[str, Any]) -> None:
        self.name, self.backend = model, backend
        known = accepted(backend) or set()
        given = {name: value for name, value in arguments.items() if name in known}
        place = next((name for name in ("pretrained", "model") if name in known), None)
        try:
            self._model: Any = get_model(backend)(**({place: model} if place else {}), **given)
        except Exception as error:  # any model of the harness, with errors of any kind
            reason = " ".join(str(error).split())[:300]
            raise EngineError(f"the model {model} (backend={backend}) could not be made: {reason}") from error
        self.parameters = parameters_of(self._model, arguments.get("parameters"))
        self.window = int(getattr(self._model, "max_length", None) or UNKNOWN_WINDOW)
        size = str(getattr(self._model, "batch_size", BATCH))
        self.max_concurrency = max(int(size) if size.isdigit() else BATCH, int(getattr(self._model, "_concurrent", 1)))
        self.work = Work()
        self.identity = {
            "engine": f"lm_eval {backend}",
            "lm_eval": version("lm_eval"),
            "model": model,
            "arguments": {name: str(value) for name, value in sorted(given.items()) if name not in IGNORED},
        }
        self.lm = RegisteredLM(model, self._model, self.window)
        self._counter = Counter()
        self._tokenizer = tokenizer_of(self._model)
        self._waiting: list[tuple[Instance, asyncio.Future[str]]] = []
        self._running: asyncio.Task[None] | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"tandem {model}")

    # For coroutines

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """See `Engine.generate`. Raises CallError when the model fails or writes nothing."""
        if sampling.measured:
            raise EngineError(f"{self.name} (backend={self.backend}) tells no entropy of generated tokens.")
        started = time.perf_counter()
        written = decode_reply(prompt.continued)
        size = len(self.encode(prompt.text)) + self._count(written)
        if size + sampling.max_tokens > self.window:
            raise ContextError(
                f"a prompt of {size} tokens and {sampling.max_tokens} tokens to generate exceed the window of "
                f"{self.name}, {self.window} tokens; lower max_gen_toks or the efforts, or use another model."
            )
        text = await self._submit(self._context(prompt.text, written), sampling)
        if not text and not written:
            raise CallError(f"{self.name} (backend={self.backend}) wrote nothing.")
        new = min(self._count(text), sampling.max_tokens)
        ended = not text or new < ENDED * sampling.max_tokens
        self.work.prefill_tokens += size
        self.work.recomputed_tokens += size if written else 0
        self.work.decode_tokens += new
        seconds = time.perf_counter() - started
        return Completion(text, encode_reply(text), "stop" if ended else "length", size, 0, seconds, counted=new)

    async def score(self, prompt: Prompt, view: ScoringView = DEFAULT_VIEW) -> TokenStats:
        """See `Engine.score`: raises EngineError, these models tell no entropies."""
        raise EngineError(self.cannot_score)

    @property
    def cannot_score(self) -> str:
        """Why this engine cannot judge."""
        return (
            f"backend={self.backend} gives text alone, so the judge cannot read with {self.name}; "
            "run the intern with intern_backend=hf or vllm, or use policy=stage:N, which needs no judge."
        )

    def release(self, session: str) -> None:
        """See `Engine.release`: nothing is kept."""

    def render(self, messages: Messages, generation_prompt: bool = True) -> str:
        """See `Engine.render`: the conversation itself, rendered when it is asked."""
        return encode_chat(messages, generation_prompt)

    def encode(self, text: str) -> list[int]:
        """See `Engine.encode`: by the model's tokenizer, or estimated."""
        messages, begun = decode_chat(text)
        plain = begun if messages is None else "\n".join(content for _, content in messages) + begun
        ids = self._tokens(plain)
        return self._counter.encode(plain) if ids is None else ids

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """See `Engine.decode`."""
        return decode_reply(token_ids)

    def text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.text`."""
        return cut(decode_reply(token_ids), stop)[0]

    def close(self) -> None:
        """See `Engine.close`."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _count(self, text: str) -> int:
        ids = self._tokens(text)
        return self._counter.count(text) if ids is None else len(ids)

    def _tokens(self, text: str) -> list[int] | None:
        if self._tokenizer is None:
            return None
        return list(self._tokenizer.encode(text)) if text else []

    def _context(self, text: str, written: str) -> Any:
        """The prompt as the model takes it, with what it wrote before."""
        messages, begun = decode_chat(text)
        if messages is None:
            return text + written
        history = [{"role": role, "content": content} for role, content in messages]
        rendered = self._rendered(history)
        if not isinstance(rendered, JsonChatStr):
            return rendered + begun + written
        if begun:
            raise EngineError(f"backend={self.backend} cannot go on in an answer that has begun; use another policy.")
        if written:
            turns = [{"role": "assistant", "content": written}, {"role": "user", "content": CONTINUE_REQUEST}]
            rendered = self._rendered([*history, *turns])
        return rendered

    def _rendered(self, history: list[dict[str, str]]) -> Any:
        try:
            return self._model.apply_chat_template(history, add_generation_prompt=True)
        except NotImplementedError as error:
            raise EngineError(
                f"backend={self.backend} has no chat template; leave --apply_chat_template out."
            ) from error

    # One batch after the other, in one thread

    async def _submit(self, context: Any, sampling: Sampling) -> str:
        request = Instance("generate_until", {}, (context, arguments_of(sampling)), 0)
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._work_off())
        return await future

    async def _work_off(self) -> None:
        await asyncio.sleep(0)  # those that are ready in the same turn of the loop come along
        while self._waiting:
            batch = [entry for entry in self._waiting if not entry[1].done()]
            self._waiting = []
            requests = [request for request, _ in batch]
            started = time.perf_counter()
            try:
                texts = await asyncio.get_running_loop().run_in_executor(self._worker, self._generate, requests)
            except Exception as error:  # each question of the batch gets it; the others go on
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                failed = CallError(f"{self.name} (backend={self.backend}): {reason}")
                for _, future in batch:
                    if not future.done():
                        future.set_exception(failed)
                continue
            finally:
                self.work.generate_seconds += time.perf_counter() - started
            for (_, future), text in zip(batch, texts, strict=True):
                if not future.done():
                    future.set_result(text)

    def _generate(self, requests: list[Instance]) -> list[str]:
        found = self._model.generate_until(requests, disable_tqdm=True) if requests else []
        return [text or "" for text in found]


class RegisteredLM(TextLM):
    """What the harness asks the answering model for; likelihoods by the model itself, where it has them."""

    def __init__(self, name: str, model: Any, window: int) -> None:
        super().__init__(name, window, int(getattr(model, "max_gen_toks", 256)))
        self._model = model

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The model's own."""
        own = getattr(self._model, "chat_template", None)
        return str(own(chat_template) or "") if callable(own) else ""

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See `lm_eval.api.model.LM`."""
        return self._asked("loglikelihood", requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """See `lm_eval.api.model.LM`."""
        return self._asked("loglikelihood_rolling", requests, disable_tqdm)

    def _asked(self, method: str, requests: Any, disable_tqdm: bool) -> Any:
        try:
            return getattr(self._model, method)(requests, disable_tqdm=disable_tqdm)
        except NotImplementedError:
            self._refuse("likelihoods")


def tokenizer_of(model: Any) -> Any:
    """The model's own tokenizer, None where it has none, or none that can be had here."""
    try:
        found: Any = getattr(model, "tokenizer", None)
    except OSError as error:  # some fetch it when it is first asked for
        log.warning("the tokenizer of %s cannot be had (%s); tokens are estimated.", type(model).__name__, error)
        return None
    return found if callable(getattr(found, "encode", None)) else None


def parameters_of(model: Any, given: Any) -> int | None:
    """Parameters of the model: as given, or counted where it is one of torch's."""
    if given is not None:
        return int(float(given))
    network: Any = getattr(model, "model", None)
    return sum(one.numel() for one in network.parameters()) if callable(getattr(network, "parameters", None)) else None


def arguments_of(sampling: Sampling) -> dict[str, Any]:
    """The sampling in the harness's own terms."""
    given: dict[str, Any] = {"until": list(sampling.stop), "max_gen_toks": sampling.max_tokens}
    if sampling.temperature == 0:
        return {**given, "do_sample": False, "temperature": 0.0}
    more = {name: getattr(sampling, name) for name in ("top_p", "top_k", "min_p", "repetition_penalty")}
    more = {name: value for name, value in more.items() if value is not None}
    return {**given, "do_sample": True, "temperature": sampling.temperature, **more}
