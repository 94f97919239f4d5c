"""Log-probability, entropy and confidence of tokens from logits, and the most likely token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def token_stats(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of target tokens, entropies, and the largest log-probabilities, in nats.

    Parameters
    ----------
    logits
        Shape (..., V), any floating dtype.
    targets
        Token ids, int64 of shape (..., 1).

    Returns
    -------
    logprob, entropy, confidence : float32 of shape (..., 1)

    Notes
    -----
    H = log Z - (1/Z) sum e^z z with z = logits - max, which reads the vocabulary half as often as log-softmax would.
    The largest z is 0, so the largest log-probability is -log Z.
    """
    z = logits.float()
    z = z - z.amax(-1, keepdim=True)
    e = z.exp()
    total = e.sum(-1, keepdim=True)
    log_total = total.log()
    entropy = log_total - torch.linalg.vecdot(e, z).unsqueeze(-1) / total
    # A masked logit is minus infinity and makes 0 * -inf = NaN; only then is the slower, exact sum needed.
    if not bool(entropy.isfinite().all()):
        entropy = torch.special.entr(e / total).sum(-1, keepdim=True)
    return z.gather(-1, targets) - log_total, entropy, -log_total


def logprob_and_entropy(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first two of `token_stats`."""
    logprob, entropy, _ = token_stats(logits, targets)
    return logprob, entropy


def likeliest_tokens(logits: torch.Tensor) -> tuple[list[int], list[bool]]:
    """The most likely token of each row of logits (N, V), and whether the row's logits are numbers.

    A single NaN in a row counts as its largest logit, so one look at that suffices; infinite is no number either.
    """
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        rows = logits.numpy()
        best = rows.argmax(-1)
        return best.tolist(), np.isfinite(rows[np.arange(len(rows)), best]).tolist()
    values, tokens = logits.max(-1)
    return tokens.tolist(), values.isfinite().tolist()


def generated_token_stats(logits: torch.Tensor, tokens: Sequence[int]) -> list[tuple[float, float]]:
    """Log-probability and entropy, in nats, of one generated token for each row of logits (N, V)."""
    chosen = torch.tensor(tokens, device=logits.device).unsqueeze(-1)
    pairs: list[list[float]] = torch.cat(logprob_and_entropy(logits, chosen), dim=1).tolist()
    return [(logprob, entropy) for logprob, entropy in pairs]
