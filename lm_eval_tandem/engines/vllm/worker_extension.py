"""Runs inside vLLM's own processes: each token's entropy over the whole vocabulary, beside its logprob.

vLLM returns a token's logprob and those of the most likely tokens. `TandemWorker`, an extension of vLLM's workers,
replaces the second most likely token's by the entropy. A request asks for `LOGPROB_COLUMNS` logprobs and reads

    column 0: the token itself
    column 1: the most likely token
    column 2: the entropy, with the token id `ENTROPY_TOKEN_ID`

so that no Python object is ever made for each entry of the vocabulary. The token id distinguishes a row that holds an
entropy from one that does not: vLLM leaves the rows of tokens that are in its prefix cache unwritten.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import Any

import torch

from lm_eval_tandem.engines.entropy import ENTROPY_TOKEN_ID, LOGPROB_COLUMNS

ROWS_AT_ONCE = 64
"""Rows whose probabilities are in memory at the same time: 64 x 152k float32 values are 39 MB."""


class TandemWorker:
    """Mixed into vLLM's worker class (`worker_extension_cls`); its methods are called by `collective_rpc`."""

    model_runner: Any

    def tandem_add_entropies(self) -> bool:
        """Wrap the function that gathers logprobs, so that it adds entropies; False where this vLLM has none of them.

        Whether the entropies are right is for `entropy_check` to find out.
        """
        sampler: Any = getattr(getattr(self, "model_runner", None), "sampler", None)
        if callable(getattr(sampler, "gather_logprobs", None)):
            sampler.gather_logprobs = with_entropy(sampler.gather_logprobs, of_logits=False)
            return True
        return wrap_new_runner()

    def tandem_exit_with(self, pid: int) -> bool:
        """End this worker, and with it its engine, as soon as the process `pid` has ended for whatever reason.

        vLLM's engine itself does not notice the death of the process that it works for.

        Returns
        -------
        bool
            Whether the process can be watched; False on another host and where there is no Linux.
        """
        try:
            process = os.pidfd_open(pid)
        except (OSError, AttributeError):  # no such process on this host, or no Linux
            return False

        def wait() -> None:
            select.select([process], [], [])
            os._exit(1)

        threading.Thread(target=wait, name="tandem watch", daemon=True).start()
        return True

    def tandem_parameters(self) -> int:
        """Number of parameters that this worker holds."""
        return sum(parameter.numel() for parameter in self.model_runner.get_model().parameters())


def wrap_new_runner() -> bool:
    """Wrap the function that vLLM's runner for newer GPUs uses, in both modules that import it."""
    try:
        from vllm.v1.worker.gpu.sample import prompt_logprob, sampler
    except ImportError:  # an older vLLM, or a platform without this runner
        return False
    modules = (prompt_logprob, sampler)
    if not all(callable(getattr(module, "compute_topk_scores", None)) for module in modules):
        return False
    for module in modules:
        module.compute_topk_scores = with_entropy(module.compute_topk_scores, of_logits=True)
    return True


def with_entropy(gather: Callable[..., Any], of_logits: bool) -> Callable[..., Any]:
    """The same function, with entropies in the last column where `LOGPROB_COLUMNS` columns are requested.

    Parameters
    ----------
    gather
        Takes scores of shape (rows, vocabulary) and a number of columns. Its result holds `logprob_token_ids` and
        `logprobs`, each of shape (rows, 1 + columns).
    of_logits
        Whether the scores are logits; otherwise they are log-probabilities.
    """
    if getattr(gather, "_tandem", False):
        return gather

    def gather_with_entropy(scores: torch.Tensor, columns: int, *more: Any, **named: Any) -> Any:
        gathered = gather(scores, columns, *more, **named)
        if columns == LOGPROB_COLUMNS:
            gathered.logprobs[:, LOGPROB_COLUMNS] = entropies(scores, of_logits)
            gathered.logprob_token_ids[:, LOGPROB_COLUMNS] = ENTROPY_TOKEN_ID
        return gathered

    gather_with_entropy._tandem = True  # type: ignore[attr-defined]
    return gather_with_entropy


def entropies(scores: torch.Tensor, of_logits: bool) -> torch.Tensor:
    """Entropy of each row of scores (rows, vocabulary) in nats, float32 of shape (rows,)."""
    parts = [scores.new_empty(0, dtype=torch.float32)]
    for rows in scores.split(ROWS_AT_ONCE):
        logprobs = rows.log_softmax(-1, dtype=torch.float32) if of_logits else rows.float()
        # `entr` is 0 for a probability of 0, where a masked entry would make p log p NaN.
        parts.append(torch.special.entr(logprobs.exp()).sum(-1))
    return torch.cat(parts)
