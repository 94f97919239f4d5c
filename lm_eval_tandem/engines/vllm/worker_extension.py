"""What runs inside vLLM's own processes: the entropy of each token, over the whole vocabulary, beside its logprob.

vLLM hands on a token's logprob and those of the most likely tokens. `TandemWorker`, an extension of its workers, puts
the entropy in place of the second most likely one. A request asks for `COLUMNS` logprobs and reads

    column 0: the token itself    column 1: the most likely token    column 2: the entropy, its token id `MARK`

so that no Python object is ever made per entry of the vocabulary. The mark tells a row that was measured from one that
was not: vLLM leaves those of tokens found in its prefix cache unwritten.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import Any

import torch

from lm_eval_tandem.engines.entropy import COLUMNS, MARK

ROWS = 64
"""Rows whose probabilities are held at once: 64 x 152k float32 values are 39 MB."""
OLD_RUNNER = "the method gather_logprobs of its sampler"
NEW_RUNNER = "compute_topk_scores in vllm.v1.worker.gpu.sample"


class TandemWorker:
    """Mixed into vLLM's worker class (`worker_extension_cls`); its methods are called by `collective_rpc`."""

    model_runner: Any

    def tandem_measure(self) -> str:
        """Wrap what gathers logprobs; says what was wrapped, or "" where this vLLM has neither place."""
        sampler: Any = getattr(self.model_runner, "sampler", None)
        if callable(getattr(sampler, "gather_logprobs", None)):
            sampler.gather_logprobs = with_entropy(sampler.gather_logprobs, of_logits=False)
            return OLD_RUNNER
        return NEW_RUNNER if wrap_new_runner() else ""

    def tandem_end_with(self, pid: int) -> bool:
        """End this worker, and so its engine, as soon as the process has ended, however it did; False on other hosts.

        vLLM's engine itself does not notice the death of the process that it works for.
        """
        try:
            process = os.pidfd_open(pid)
        except (OSError, AttributeError):  # no such process here, or no Linux
            return False

        def wait() -> None:
            select.select([process], [], [])
            os._exit(1)

        threading.Thread(target=wait, name="tandem watch", daemon=True).start()
        return True

    def tandem_parameters(self) -> int:
        """Parameters that this worker holds."""
        return sum(parameter.numel() for parameter in self.model_runner.get_model().parameters())


def wrap_new_runner() -> bool:
    """Wrap the function that the runner for newer GPUs uses, in both modules that imported it."""
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
    """The same function, with entropies in the last of `COLUMNS` columns.

    gather: takes logprobs (or logits, `of_logits`) of shape [rows, vocabulary] and a number of columns first; its
        result holds `logprob_token_ids` and `logprobs`, each [rows, 1 + columns].
    """
    if getattr(gather, "_tandem", False):
        return gather

    def measured(scores: torch.Tensor, columns: int, *more: Any, **named: Any) -> Any:
        found = gather(scores, columns, *more, **named)
        if columns == COLUMNS:
            found.logprobs[:, COLUMNS] = entropies(scores, of_logits)
            found.logprob_token_ids[:, COLUMNS] = MARK
        return found

    measured._tandem = True  # type: ignore[attr-defined]
    return measured


def entropies(scores: torch.Tensor, of_logits: bool) -> torch.Tensor:
    """H of each row in nats, float32 of shape [rows]; few rows at a time, for the memory that they take."""
    found = [scores.new_empty(0, dtype=torch.float32)]
    for rows in scores.split(ROWS):
        logprobs = rows.log_softmax(-1, dtype=torch.float32) if of_logits else rows.float()
        # Masked entries: p log p of a probability of zero is zero, not NaN.
        found.append(torch.special.entr(logprobs.exp()).sum(-1))
    return torch.cat(found)
