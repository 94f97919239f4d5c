"""A model in vLLM, loaded through lm-eval's own class, its calls run in an event loop of its own.

lm-eval's `VLLM` turns the arguments of `--model vllm` into vLLM's, renders chats and answers likelihoods. It wants an
`LLM`; it gets a `Served`, which answers the same calls from an `AsyncLLM`, so one set of weights serves the harness's
requests and the cascade's coroutines.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from importlib.metadata import version
from itertools import count
from typing import Any, TypeVar

from lm_eval.models import vllm_causallms
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMError
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from lm_eval_tandem.engines.vllm import worker_extension
from lm_eval_tandem.errors import EngineError

T = TypeVar("T")

VERSION = version("vllm")
ON_CPU = bool(current_platform.is_cpu())
STEP_TOKENS = 1024
"""Tokens of a step: the judge holds the logits of as many, 0.6 GB for a vocabulary of 152k."""
CPU_BLOCK = 32
"""Tokens of a cache block on a CPU, where vLLM's own default of 128 would have a grown text read again in large parts;
its kernels want a multiple of 32."""
CPU_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""The model runs in the engine's own process. Where it has one to itself, which is vLLM's default on a CPU, the engine
keeps a core busy with waiting for it; two engines at once take four cores so, of which two do nothing."""
PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
CPU_ENVIRONMENT = {
    # Two engines would bind their threads to the same cores otherwise.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Nothing is compiled for one rank count; it would take a quarter of a minute at the first judge pass.
    "TORCH_COMPILE_DISABLE": "1",
}
ENVIRONMENT = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
"""A process with threads, and the first engine's are some, must not be forked."""
OUR_WORKER = f"{worker_extension.__name__}.{worker_extension.TandemWorker.__name__}"
PATIENCE = 600.0
"""Seconds that vLLM may take to answer a call about itself."""
GRACE = 15.0
"""Seconds that vLLM's processes get to end by themselves."""


class Served:
    """One `AsyncLLM` and the thread of its event loop.

    Parameters
    ----------
    arguments
        Those of vLLM's `AsyncEngineArgs`.
    """

    def __init__(self, **arguments: Any) -> None:
        with environment():
            self.llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        self._numbers = count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tandem vllm", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def llm_engine(self) -> AsyncLLM:
        """What lm-eval reads the model's configuration from."""
        return self.llm

    async def one(
        self,
        prompt: Mapping[str, Any],
        params: SamplingParams,
        until: Callable[[Any], bool] | None = None,
        **options: Any,
    ) -> Any:
        """The finished `RequestOutput` for one prompt of token ids (vLLM's `TokensPrompt`).

        until: asked of what has come so far; True ends the request, and the output's finish_reason is then None.

        May be awaited in any loop; cancelling it aborts the request.

        Raises
        ------
        EngineError
            VLLM refused the request, or has ended.
        """
        return await self.run(self._one(prompt, params, options, until))

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of something that has to run in vLLM's loop, awaited in any other; cancelling it reaches there."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Have something done in vLLM's loop, for which nobody waits."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(work, self._loop)
        else:
            work.close()

    def new_name(self) -> str:
        """A name that no request had."""
        return f"tandem-{next(self._numbers)}"

    async def _one(
        self,
        prompt: Mapping[str, Any],
        params: SamplingParams,
        options: Mapping[str, Any],
        until: Callable[[Any], bool] | None = None,
    ) -> Any:
        last = None
        with translated_errors():
            async with aclosing(self.llm.generate(prompt, params, self.new_name(), **options)) as outputs:
                async for last in outputs:
                    if until is not None and not last.finished and until(last):
                        return last  # closing the outputs aborts the request
        if last is None or last.outputs[0].finish_reason not in ("stop", "length"):
            reason = "nothing" if last is None else last.outputs[0].finish_reason
            raise EngineError(f"vLLM {VERSION} broke off a request ({reason}); its log, above, may say why.")
        return last

    def generate(
        self, prompts: Sequence[Any], sampling_params: Sequence[SamplingParams], use_tqdm: bool, lora_request: Any
    ) -> list[Any]:
        """As `LLM.generate`, for lm-eval's class: all prompts at once, their outputs in order."""

        async def everything() -> list[Any]:
            pairs = zip(prompts, sampling_params, strict=True)
            asked = (self._one(p, s, {"lora_request": lora_request}) for p, s in pairs)
            return list(await asyncio.gather(*asked))

        return self.wait(everything())

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """What each of vLLM's workers answers to a method of `vllm_worker.TandemWorker`."""
        return list(self.wait(asyncio.wait_for(self.llm.collective_rpc(method, args=arguments), PATIENCE)))

    def wait(self, work: Awaitable[T]) -> T:
        """The result of something that has to run in the loop."""

        async def run() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    async def _end_listening(self) -> None:
        """So that the end of vLLM's processes is no error to whoever listens to them."""
        if self.llm.output_handler is not None:
            self.llm.output_handler.cancel()
            await asyncio.gather(self.llm.output_handler, return_exceptions=True)

    def close(self) -> None:
        """End vLLM's processes and the loop's thread."""
        if not self._thread.is_alive():
            return
        atexit.unregister(self.close)
        self.wait(self._end_listening())
        self.llm.shutdown(timeout=GRACE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=30)
        with suppress(RuntimeError):  # it still runs: a daemon's loop ends with the process
            self._loop.close()


@contextmanager
def translated_errors() -> Iterator[None]:
    """VLLM's errors about a request, in a sentence."""
    try:
        yield
    except EngineDeadError as error:
        raise EngineError(
            "an engine of vLLM has ended and answers no more; its log, above, says why. "
            "With store=FILE another run goes on from what is finished."
        ) from error
    except (VLLMError, ValueError) as error:
        raise EngineError(f"vLLM {VERSION} refused a request: {one_line(error)}") from error


def load(arguments: Mapping[str, Any], exact: bool) -> vllm_causallms.VLLM:
    """lm-eval's model around an `AsyncLLM` (its `model` is a `Served`).

    arguments: what `--model vllm` takes, and any argument of vLLM's engine.
    exact: measure entropies over the whole vocabulary.

    Raises
    ------
    EngineError
        VLLM cannot load the model, or is of a version that cannot be measured in.
    """
    name = arguments["pretrained"]
    made: list[Served] = []
    given = with_defaults(arguments, exact)
    parallel = given.pop("data_parallel_size", 1)  # lm-eval would start a process group for each prompt list

    def make(**engine_arguments: Any) -> Served:
        made.append(Served(**engine_arguments, data_parallel_size=int(parallel)))
        return made[-1]

    try:
        with in_place_of_llm(make):
            lm = vllm_causallms.VLLM(**given)
        if given["worker_extension_cls"] == OUR_WORKER:
            made[-1].call("tandem_end_with", os.getpid())
        if exact and not all(found := made[-1].call("tandem_measure")):
            raise EngineError(
                f"vLLM {VERSION} has neither {worker_extension.OLD_RUNNER} nor {worker_extension.NEW_RUNNER}, "
                f"one of which is needed for exact entropies (its workers answered {found}); use vllm 0.32, "
                "or entropy=topk:20."
            )
    except Exception as error:  # whatever vLLM, transformers or torch raise: the user gets one sentence
        for served in made:
            served.close()
        if isinstance(error, EngineError):
            raise
        hint = " Two engines on one device need mentor_gpu_memory_utilization and intern_gpu_memory_utilization."
        memory = hint if "memory" in str(error) or "Engine core initialization failed" in str(error) else ""
        raise EngineError(
            f"the model {name} could not be loaded by vLLM {VERSION}: {one_line(error)}"
            f"{'' if 'log above' in str(error) else ' (more in its log above).'}{memory}"
        ) from error
    return lm


def with_defaults(arguments: Mapping[str, Any], exact: bool) -> dict[str, Any]:
    """The arguments with what the cascade needs, where the user has not chosen otherwise."""
    given = {"enable_prefix_caching": True, "max_num_batched_tokens": STEP_TOKENS, **arguments}
    if ON_CPU:
        given = {"enforce_eager": True, "block_size": CPU_BLOCK, **given}
        if all(int(given.get(name) or 1) == 1 for name in PARALLEL):
            given = {"distributed_executor_backend": CPU_EXECUTOR, **given}
    template = dict(given.get("chat_template_args") or {})
    if "enable_thinking" in template:  # lm-eval's class would lose it there
        given = {"enable_thinking": template.pop("enable_thinking"), **given, "chat_template_args": template}
    if exact and given.get("worker_extension_cls"):
        raise EngineError("worker_extension_cls=… goes with estimated entropies only; give entropy=topk:20 as well.")
    if given.get("logprobs_mode", "raw_logprobs") != "raw_logprobs":
        raise EngineError(
            f"logprobs_mode={given['logprobs_mode']} gives other values than the judge needs; leave it out."
        )
    given.setdefault("worker_extension_cls", OUR_WORKER)
    return given


@contextmanager
def in_place_of_llm(make: Any) -> Iterator[None]:
    """While this lasts, lm-eval's class gets its `LLM` from `make`."""
    original = vllm_causallms.LLM
    vllm_causallms.LLM = make
    try:
        yield
    finally:
        vllm_causallms.LLM = original


@contextmanager
def environment() -> Iterator[None]:
    """Variables that vLLM's processes inherit, where the user has set none of them."""
    wanted = {**ENVIRONMENT, **(CPU_ENVIRONMENT if ON_CPU else {})}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def one_line(error: BaseException) -> str:
    """The first 300 characters of an error, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
