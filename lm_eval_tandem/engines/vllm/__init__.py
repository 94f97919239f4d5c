"""The engine for models in vLLM, loaded by lm-eval's own class.

`engine.VLLMEngine` makes one request of every call. A text that grows by stages is one of `open_requests`; judge passes
are in `scoring`. `async_llm` loads the model and runs vLLM's event loop in a thread; `worker_extension` computes exact
entropies inside vLLM's processes, and `entropy_check` measures whether they are right; `arguments` names what
`backend=vllm` accepts.
"""
