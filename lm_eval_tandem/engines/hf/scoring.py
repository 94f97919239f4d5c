"""Scoring of prompts: one forward pass over what is new in each, the rest from the session's earlier calls."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lm_eval_tandem.engines import EngineWork, TokenStats
from lm_eval_tandem.engines.drafts import common_prefix_length
from lm_eval_tandem.engines.hf.batch import Job, resolve
from lm_eval_tandem.engines.hf.kv_cache import MAX_SCORED_LOGITS, BatchedCache, Network, PrefixCache, PrefixEntry
from lm_eval_tandem.engines.limits import is_finite, undefined_logits

Values = NDArray[np.float32]


def score_batch(jobs: list[Job], network: Network, prefixes: PrefixCache, work: EngineWork) -> None:
    """Score the prompts of all jobs in one batch and resolve their futures with `TokenStats`.

    Parameters
    ----------
    jobs
        Calls of `score`.
    network
        The model, the jobs' adapter switched on if they have one.
    prefixes
        Where computed prefixes of sessions are found and put; those of this adapter only.
    work
        Totals that the batch adds to.
    """
    logits = len(jobs) * max(len(job.ids) for job in jobs) * network.vocabulary
    if not network.continues and len(jobs) > 1 and logits > MAX_SCORED_LOGITS:  # each is to be read in one pass
        for job in jobs:
            score_batch([job], network, prefixes, work)
        return
    started = time.perf_counter()
    entries = [prefixes.get(job.prompt.session) for job in jobs]
    reused = [_reusable(job, entry, work) for job, entry in zip(jobs, entries, strict=True)]
    cache = BatchedCache(network)
    cache.stack([entry.prefix(n) if entry else [] for entry, n in zip(entries, reused, strict=True)])
    hidden: list[Any] = [None] * len(jobs)
    with network.capture_hidden() if any(job.view.hidden for job in jobs) else nullcontext() as captured:
        # The last token of every prompt is among the new ones, so its hidden state is in the latest pass.
        scored = cache.score([job.ids[n:] for job, n in zip(jobs, reused, strict=True)])
    confident = any(job.view.confidence for job in jobs)
    logprobs, entropies, *confidences = (tensor.cpu().numpy() for tensor in scored[: 3 if confident else 2])
    if captured is not None:
        states = _as_arrays(captured[0])
        hidden = [state if job.view.hidden else None for job, state in zip(jobs, states, strict=True)]
    stats: list[TokenStats] = []
    for row, (job, entry, n) in enumerate(zip(jobs, entries, reused, strict=True)):
        logprob = _joined(entry.logprob if entry else None, n, logprobs[row], len(job.ids))
        entropy = _joined(entry.entropy if entry else None, n, entropies[row], len(job.ids))
        confidence = None
        if job.view.confidence:
            confidence = _joined(entry.confidence if entry else None, n, confidences[0][row], len(job.ids))
        stats.append(TokenStats(logprob, entropy, n, 0.0, hidden[row], confidence))
        if job.prompt.session is not None and network.stackable:
            prefixes.put(job.prompt.session, PrefixEntry(job.ids, cache.copy_row(row), logprob, entropy, confidence))
    seconds = time.perf_counter() - started
    work.judge_seconds += seconds
    stats = [replace(one, seconds=seconds / len(jobs)) for one in stats]
    results = [one if is_finite(one) else undefined_logits(network.name) for one in stats]
    resolve(list(zip(jobs, results, strict=True)))


def _reusable(job: Job, entry: PrefixEntry | None, work: EngineWork) -> int:
    """Number of the prompt's leading tokens that need not be read again.

    The last token that prompt and entry share is read once more, because it predicts the first new one. An entry that
    was scored without confidence does not help a call that requests it.
    """
    shared = 0
    if entry is not None and entry.logprob is not None:
        shared = min(common_prefix_length(entry.ids, job.ids), len(entry.logprob))
    lacks_confidence = job.view.confidence and (entry is None or entry.confidence is None)
    reused = 0 if lacks_confidence else max(0, min(shared, len(job.ids)) - 1)
    work.recomputed_tokens += shared - reused
    work.prefill_tokens += len(job.ids) - reused
    return reused


def _as_arrays(states: torch.Tensor) -> NDArray[np.float32]:
    """Hidden states (B, D) as a float32 copy."""
    return np.array(states.float().cpu().numpy())


def _joined(before: Values | None, reused: int, new: Values, n: int) -> Values:
    """Statistics of all n tokens: those known of the first `reused` + 1, then the new ones, aligned on the right."""
    whole = np.full(n, np.nan, dtype=np.float32)
    if before is not None and reused:
        whole[: reused + 1] = before[: reused + 1]
    n_new = n - reused - 1
    if n_new:
        whole[n - n_new :] = new[len(new) - n_new :]
    return whole
