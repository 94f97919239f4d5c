"""A model in vLLM whose event loop runs in its own thread, loaded through lm-eval's class.

lm-eval's `VLLM` turns the arguments of `--model vllm` into vLLM's, renders chats and answers likelihoods. It expects an
`LLM` of vLLM; here it gets an `AsyncLLMThread`, which answers the same calls from an `AsyncLLM`, so that one set of
weights serves the harness's requests and the cascade's coroutines.
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
from lm_eval_tandem.engines.vllm.entropy_check import warn_of_untested
from lm_eval_tandem.errors import EngineError, one_line

T = TypeVar("T")

VERSION = version("vllm")
ON_CPU = bool(current_platform.is_cpu())
STEP_TOKENS = 1024
"""Largest number of tokens in one step of vLLM. A judge pass has the logits of all of them in memory: 0.6 GB for a
vocabulary of 152k."""
CPU_BLOCK = 32
"""Tokens in a block of the prefix cache on a CPU. vLLM's own default is 128, with which much of a text that grows would
be read again; its kernels need a multiple of 32."""
CPU_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""Runs the model in the engine's own process. In a separate process, vLLM's default on a CPU, the engine keeps one core
busy with waiting for it, so that two engines would occupy four cores, two of them to no effect."""
PARALLEL_SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
CPU_ENVIRONMENT = {
    # Otherwise two engines would bind their threads to the same cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Otherwise vLLM compiles the function that counts the ranks of tokens, for a quarter of a minute at the first
    # judge pass.
    "TORCH_COMPILE_DISABLE": "1",
}
ENVIRONMENT = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
"""A process that has threads, as the first engine's has, must not be forked."""
WORKER_EXTENSION = f"{worker_extension.__name__}.{worker_extension.TandemWorker.__name__}"
CALL_TIMEOUT = 600.0
"""Seconds that vLLM's workers may take to answer a call."""
SHUTDOWN_TIMEOUT = 15.0
"""Seconds that vLLM's processes may take to end by themselves."""
THREAD_TIMEOUT = 30.0
"""Seconds that the event loop's thread may take to end."""


class AsyncLLMThread:
    """One `AsyncLLM` of vLLM and the thread of its event loop.

    Parameters
    ----------
    arguments
        Those of vLLM's `AsyncEngineArgs`.

    Attributes
    ----------
    llm
        The `AsyncLLM`.
    """

    def __init__(self, **arguments: Any) -> None:
        with vllm_environment():
            self.llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        self._request_numbers = count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tandem vllm", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def llm_engine(self) -> AsyncLLM:
        """The object from which lm-eval's class reads the model's configuration."""
        return self.llm

    async def complete(
        self,
        prompt: Mapping[str, Any],
        params: SamplingParams,
        until: Callable[[Any], bool] | None = None,
        **options: Any,
    ) -> Any:
        """The finished `RequestOutput` of one request. May be awaited in any event loop; cancelling it aborts it.

        Parameters
        ----------
        prompt
            vLLM's `TokensPrompt`.
        params
            How to generate.
        until
            Gets each unfinished output; True ends the request, whose finish_reason is then None.
        options
            Further arguments of `AsyncLLM.generate`.

        Raises
        ------
        EngineError
            vLLM refused the request, or has ended.
        """
        return await self.run(self._complete(prompt, params, options, until))

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in vLLM's event loop and await its result in another; a cancellation is passed on."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine in vLLM's event loop without waiting for its end."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(work, self._loop)
        else:
            work.close()

    def new_request_id(self) -> str:
        """An id that no request has had."""
        return f"tandem-{next(self._request_numbers)}"

    async def _complete(
        self,
        prompt: Mapping[str, Any],
        params: SamplingParams,
        options: Mapping[str, Any],
        until: Callable[[Any], bool] | None = None,
    ) -> Any:
        last = None
        with translated_errors():
            async with aclosing(self.llm.generate(prompt, params, self.new_request_id(), **options)) as outputs:
                async for last in outputs:
                    if until is not None and not last.finished and until(last):
                        return last  # closing the outputs aborts the request
        if last is None or last.outputs[0].finish_reason not in ("stop", "length"):
            reason = "nothing" if last is None else last.outputs[0].finish_reason
            raise EngineError(f"vLLM {VERSION} broke off a request ({reason}); its log, above, may give the reason.")
        return last

    def generate(
        self, prompts: Sequence[Any], sampling_params: Sequence[SamplingParams], use_tqdm: bool, lora_request: Any
    ) -> list[Any]:
        """The outputs of all prompts in order, as `LLM.generate` returns them; called by lm-eval's class."""

        async def everything() -> list[Any]:
            pairs = zip(prompts, sampling_params, strict=True)
            requests = (self._complete(prompt, params, {"lora_request": lora_request}) for prompt, params in pairs)
            return list(await asyncio.gather(*requests))

        return self.wait(everything())

    def call_workers(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of `worker_extension.TandemWorker` in each of vLLM's workers; their results."""
        return list(self.wait(asyncio.wait_for(self.llm.collective_rpc(method, args=arguments), CALL_TIMEOUT)))

    def wait(self, work: Awaitable[T]) -> T:
        """Run an awaitable in vLLM's event loop and block until its result is there."""

        async def run() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    async def _stop_output_handler(self) -> None:
        """Stop the task that listens to vLLM's processes, which would report their end as an error."""
        if self.llm.output_handler is not None:
            self.llm.output_handler.cancel()
            await asyncio.gather(self.llm.output_handler, return_exceptions=True)

    def close(self) -> None:
        """End vLLM's processes and the event loop's thread."""
        if not self._thread.is_alive():
            return
        atexit.unregister(self.close)
        self.wait(self._stop_output_handler())
        self.llm.shutdown(timeout=SHUTDOWN_TIMEOUT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=THREAD_TIMEOUT)
        with suppress(RuntimeError):  # the loop still runs; it ends with the process, because its thread is a daemon
            self._loop.close()


@contextmanager
def translated_errors() -> Iterator[None]:
    """Within the block, vLLM's exceptions about a request become an EngineError of one sentence."""
    try:
        yield
    except EngineDeadError as error:
        raise EngineError(
            "an engine of vLLM has ended and answers no more; its log, above, gives the reason. "
            "With store=FILE another run continues from what is finished."
        ) from error
    except (VLLMError, ValueError) as error:
        raise EngineError(f"vLLM {VERSION} refused a request: {one_line(error) or type(error).__name__}") from error


def load_vllm(arguments: Mapping[str, Any], exact: bool) -> vllm_causallms.VLLM:
    """lm-eval's model around an `AsyncLLM`; its attribute `model` is an `AsyncLLMThread`.

    Parameters
    ----------
    arguments
        Those of `--model vllm`, and any of vLLM's engine.
    exact
        Whether to compute entropies over the whole vocabulary; `entropy_check` tells whether they are right.

    Raises
    ------
    EngineError
        vLLM cannot load the model.
    """
    warn_of_untested(VERSION)
    name = arguments["pretrained"]
    started: list[AsyncLLMThread] = []
    given = with_defaults(arguments, exact)
    parallel = given.pop("data_parallel_size", 1)  # lm-eval would start processes for each list of prompts

    def start(**engine_arguments: Any) -> AsyncLLMThread:
        started.append(AsyncLLMThread(**engine_arguments, data_parallel_size=int(parallel)))
        return started[-1]

    try:
        with replaced_llm(start):
            lm = vllm_causallms.VLLM(**given)
        if given["worker_extension_cls"] == WORKER_EXTENSION:
            started[-1].call_workers("tandem_exit_with", os.getpid())
        if exact:
            started[-1].call_workers("tandem_add_entropies")
    except Exception as error:  # vLLM, transformers and torch raise exceptions of any kind; the user gets one sentence
        for async_llm in started:
            async_llm.close()
        if isinstance(error, EngineError):
            raise
        raise loading_error(name, error) from error
    return lm


def loading_error(name: str, error: Exception) -> EngineError:
    """The error of a model that could not be loaded, with a hint where it lacked memory."""
    hint = " Two engines on one device need mentor_gpu_memory_utilization and intern_gpu_memory_utilization."
    memory = hint if "memory" in str(error) or "Engine core initialization failed" in str(error) else ""
    return EngineError(
        f"the model {name} could not be loaded by vLLM {VERSION}: {one_line(error) or type(error).__name__}"
        f"{'' if 'log above' in str(error) else ' (more in its log above).'}{memory}"
    )


def with_defaults(arguments: Mapping[str, Any], exact: bool) -> dict[str, Any]:
    """The arguments, with what the cascade needs where the user has not set it.

    Raises
    ------
    EngineError
        An argument contradicts what the cascade needs.
    """
    given = {"enable_prefix_caching": True, "max_num_batched_tokens": STEP_TOKENS, **arguments}
    if ON_CPU:
        given = {"enforce_eager": True, "block_size": CPU_BLOCK, **given}
        if all(int(given.get(name) or 1) == 1 for name in PARALLEL_SIZES):
            given = {"distributed_executor_backend": CPU_EXECUTOR, **given}
    template = dict(given.get("chat_template_args") or {})
    if "enable_thinking" in template:  # lm-eval's class would lose it there
        given = {"enable_thinking": template.pop("enable_thinking"), **given, "chat_template_args": template}
    if exact and given.get("worker_extension_cls"):
        raise EngineError("worker_extension_cls=… works with estimated entropies only; give entropy=topk:20 as well.")
    if given.get("logprobs_mode", "raw_logprobs") != "raw_logprobs":
        raise EngineError(
            f"logprobs_mode={given['logprobs_mode']} returns other values than the judge needs; leave it out."
        )
    if exact:  # the whole vocabulary's may be requested: see entropy_check
        given["max_logprobs"] = -1
    given.setdefault("worker_extension_cls", WORKER_EXTENSION)
    return given


@contextmanager
def replaced_llm(make: Any) -> Iterator[None]:
    """Within the block, lm-eval's class gets its `LLM` from `make`."""
    original = vllm_causallms.LLM
    vllm_causallms.LLM = make
    try:
        yield
    finally:
        vllm_causallms.LLM = original


@contextmanager
def vllm_environment() -> Iterator[None]:
    """Within the block, environment variables that vLLM's processes inherit; what the user has set stays."""
    wanted = {**ENVIRONMENT, **(CPU_ENVIRONMENT if ON_CPU else {})}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
