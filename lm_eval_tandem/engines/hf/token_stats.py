"""Log-probability and entropy of tokens from logits, and the most likely token, in torch and faster in numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lm_eval_tandem.engines.entropy import SMALL_VOCABULARY

CERTAIN_MARGIN = 10.0
"""Nats by which a token's logit has to exceed all others to count as certain without computing its entropy
(`entropy.zero_near_certain`). In 800 questions of the bundled pair no such token had an entropy above 0.12 nats. That
is no bound: the largest entropy that V other tokens allow is V e^-10 (1 + 10), 0.67 nats for the pair's 1,335 tokens.
"""
UNLIKELY = -16.0
"""Log-probability of a token below which sums relative to its logit are off by more than 1e-5 in float32."""


def logprob_and_entropy(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of target tokens, and entropies, in nats.

    Parameters
    ----------
    logits
        Shape (..., V), any floating dtype.
    targets
        Token ids, int64 of shape (..., 1).

    Returns
    -------
    logprob, entropy : float32 of shape (..., 1)

    Notes
    -----
    H = log Z - (1/Z) sum e^z z with z = logits - max, which reads the vocabulary half as often as log-softmax would.
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
    return z.gather(-1, targets) - log_total, entropy


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
    """Log-probability and entropy of one generated token for each row of logits, in nats.

    Parameters
    ----------
    logits
        Shape (N, V). On a CPU they are overwritten.
    tokens
        N token ids.

    Notes
    -----
    This runs at every decoding step, where on a CPU each call of torch counts. There, over a small vocabulary, tokens
    whose logit exceeds all others by `CERTAIN_MARGIN` are reported as (0, 0), and the few others are computed one by
    one in numpy. numpy may warn of infinities, which are handled; the caller silences it (`numpy.errstate`) once for
    all steps.
    """
    if logits.device.type == "cpu" and logits.dtype == torch.float32 and logits.shape[1] <= SMALL_VOCABULARY:
        rows = logits.numpy()
        margins = enumerate(_logit_margins(rows, tokens))
        return [(0.0, 0.0) if margin >= CERTAIN_MARGIN else _row_stats(rows[i], tokens[i]) for i, margin in margins]
    chosen = torch.tensor(tokens, device=logits.device).unsqueeze(-1)
    pairs: list[list[float]] = torch.cat(logprob_and_entropy(logits, chosen), dim=1).tolist()
    return [(logprob, entropy) for logprob, entropy in pairs]


def _logit_margins(rows: NDArray[np.float32], tokens: Sequence[int]) -> list[float]:
    """How far each token's logit (N,) exceeds the largest other logit of its row (N, V), in nats."""
    if len(rows) == 1:
        (row,), (token,) = rows, tokens
        own = row.item(token)
        row[token] = -math.inf
        best_other = row.item(row.argmax())
        row[token] = own
        return [own - best_other]
    positions = np.arange(0, rows.size, rows.shape[1]) + tokens
    chosen = rows.take(positions)
    rows.put(positions, -math.inf)
    margins: list[float] = (chosen - np.maximum.reduce(rows, 1)).tolist()
    rows.put(positions, chosen)
    return margins


def _row_stats(row: NDArray[np.float32], token: int) -> tuple[float, float]:
    """The statistics of a token over one row of logits (V,): log Z - (1/Z) sum e^z z with z = logits - its logit."""
    row -= row.item(token)
    e = np.exp(row)
    total = np.add.reduce(e).item()
    logprob = -math.log(total)
    entropy = -logprob - np.dot(e, row).item() / total
    # Masked logits make the entropy NaN; for a very unlikely token, z is so large that it magnifies the error of e.
    if math.isfinite(entropy) and logprob > UNLIKELY:
        return logprob, entropy
    exact = logprob_and_entropy(torch.from_numpy(row), torch.tensor([token]))
    return exact[0].item(), exact[1].item()
