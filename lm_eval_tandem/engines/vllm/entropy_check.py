"""Compares the entropies that vLLM reports with a reference, once, where a run needs them.

The entropies come from parts of vLLM that it does not promise to keep (`worker_extension`). No version is refused by
its number: the entropies after a few tokens are compared with those that follow from the log-probabilities of the whole
vocabulary, which vLLM returns on request (`prompt_logprobs=-1`, in the form that it returns unless told otherwise).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from packaging.version import Version
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from lm_eval_tandem.engines.entropy import LOGPROB_COLUMNS, EntropyMethod
from lm_eval_tandem.errors import EngineError, one_line

log = logging.getLogger(__name__)

OLDEST, NEWEST = "0.29", "0.32"
"""The first and the last of the releases of vLLM that this package works on; both are tested."""
WAY_ON = f"use vllm {OLDEST} to {NEWEST}, or intern_entropy=topk:20 for estimates"
TEXT = "1 + 2 = 3"
TOKENS = 3
"""Largest number of the text's tokens that are read. After each but the last, vLLM returns an object for every entry of
the vocabulary: half a second of Python for two times 152k."""
TOLERANCE = 0.05
"""Largest accepted difference, in nats and as a share of the reference. In bfloat16, passes over prompts of different
lengths may differ by some hundredths; an entropy in bits, or one of the likely tokens alone, differs by more."""

Send = Callable[[list[int], SamplingParams], Any]
"""Sends a request of these token ids and blocks until it is finished; its result is vLLM's `RequestOutput`."""


@cache
def warn_of_untested(version: str) -> None:
    """Log a warning, once in a process, if this version of vLLM is newer than the tested ones."""
    if Version(version).release[:2] > Version(NEWEST).release:
        log.warning(
            "vLLM %s is newer than %s, the newest release that this package is tested with. It is tried; exact "
            "entropies are checked before a run that needs them.",
            version,
            NEWEST,
        )


def entropy_fault(send: Send, ids: list[int], version: str) -> str:
    """What is wrong with the exact entropies that vLLM reports, in one sentence; "" where they are right.

    Parameters
    ----------
    send
        Sends a request.
    ids
        Tokens of a text, of which the first `TOKENS` are read; at least 2.
    version
        vLLM's, for the sentence.
    """
    try:
        expected = reference(send, ids[:TOKENS])
        found = reported(send, ids[:TOKENS])
        right = np.allclose(found, expected, atol=TOLERANCE, rtol=TOLERANCE, equal_nan=True)
    except Exception as error:  # what an unknown vLLM answers can break at any place; the user gets one sentence
        reason = one_line(error).rstrip(".") or type(error).__name__
        return f"the exact entropies of vLLM {version} cannot be checked ({reason}); {WAY_ON}."
    if right:
        return ""
    return (
        f"vLLM {version} reports entropies of {listed(found)} nats where its log-probabilities over the whole "
        f"vocabulary give {listed(expected)}; {WAY_ON}."
    )


def reference(send: Send, ids: list[int]) -> NDArray[np.float64]:
    """Entropies after each token but the last, from the log-probabilities of the whole vocabulary.

    Raises
    ------
    EngineError
        They are not those of the whole vocabulary.
    """
    found = []
    for row in send(ids, sampling_params(prompt_logprobs=-1)).prompt_logprobs[1:]:
        logprobs = np.array([one.logprob for one in row.values()], dtype=np.float64)
        p = np.exp(logprobs)
        if abs(p.sum() - 1) > TOLERANCE:
            raise EngineError(f"the probabilities of the {len(p)} tokens that it returned sum to {p.sum():.3g}, not 1")
        found.append(-(p * np.where(p > 0, logprobs, 0.0)).sum())
    return np.array(found)


def reported(send: Send, ids: list[int]) -> NDArray[np.float64]:
    """The same entropies as vLLM's workers report them: the last one for a generated token, the others for a prompt's.

    Raises
    ------
    EngineError
        A row holds no entropy.
    """
    columns = LOGPROB_COLUMNS
    output = send(ids[:-1], sampling_params(prompt_logprobs=columns, logprobs=columns, flat_logprobs=True))
    rows = [EntropyMethod().read(flat, 0) for flat in (output.prompt_logprobs, output.outputs[0].logprobs)]
    if not all(valid.all() for _, _, valid in rows):
        raise EngineError("its workers report none")
    return np.concatenate([entropy for _, entropy, _ in rows]).astype(np.float64)


def sampling_params(**logprobs: Any) -> SamplingParams:
    """Parameters of a request that reads all of its prompt and generates one token."""
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        detokenize=False,
        skip_reading_prefix_cache=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **logprobs,
    )


def listed(values: NDArray[np.float64]) -> str:
    """The values with two decimals, as in "2.71, 0.69"."""
    return ", ".join(f"{value:.2f}" for value in values)
