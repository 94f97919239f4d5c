"""The engine for models in transformers, loaded by lm-eval's HFLM.

`engine.HFEngine` collects calls and `worker.Worker` runs them in a thread: prompts to score go through `scoring`,
generations through `batch`. Both read tokens into a `kv_cache` and reuse what an earlier call of the session has
computed.
`sampling` chooses tokens, `token_stats` computes log-probabilities and entropies, `lora_adapter` is the adapter of a
finetuned judge, and `cpu_scheduler` lets two engines share the cores of a CPU.
"""
