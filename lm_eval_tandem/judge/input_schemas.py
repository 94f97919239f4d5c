"""The schemas of a judge's inputs: which numbers its input vector holds, by a versioned name.

An artefact names the schema that it was fitted on, and no other version's vectors are judged with it. What a user calls
`fit --inputs` maps onto schemas like this: statistics (`STATISTICS`), probe (`PROBE`), statistics+probe (`BOTH`),
hidden and lora (`hidden(width, lora)`).
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge import features, probe

Floats = NDArray[np.float64]

STATISTICS = features.SCHEMA
"""The paper's 18 statistics of question and insights."""
PROBE = "probe-13+stage/1"
"""The 13 features of a probe, and the stage; the intern makes no separate pass over the prompt."""
BOTH = "statistics-18+probe-13/1"
"""The 18 statistics, then the 13 features."""
NAMES = {
    STATISTICS: features.FEATURE_NAMES,
    PROBE: (*probe.PROBE_FEATURE_NAMES, "stage"),
    BOTH: (*features.FEATURE_NAMES, *probe.PROBE_FEATURE_NAMES),
}
"""The entries of each schema's vectors, in order. Besides these there is one schema per width of hidden states."""
_HIDDEN = re.compile(r"hidden-(lora-)?([1-9][0-9]{0,5})/1")


def hidden(width: int, lora: bool = False) -> str:
    """The schema of last-layer hidden states at a prompt's last token (paper, appendix E).

    Parameters
    ----------
    width
        D, the number of entries.
    lora
        Whether the intern reads with a LoRA adapter that was finetuned for this.

    Examples
    --------
    >>> hidden(4096), hidden(4096, lora=True)
    ('hidden-4096/1', 'hidden-lora-4096/1')
    """
    return f"hidden-{'lora-' if lora else ''}{width}/1"


def width(schema: object) -> int | None:
    """D of a schema of hidden states; None for any other."""
    match = _HIDDEN.fullmatch(str(schema))
    return None if match is None else int(match[2])


def uses_adapter(schema: object) -> bool:
    """Whether it is a schema of hidden states under a LoRA adapter."""
    match = _HIDDEN.fullmatch(str(schema))
    return match is not None and match[1] is not None


def uses_probe(schema: object) -> bool:
    """Whether its vectors hold the features of a probe."""
    return schema in (PROBE, BOTH)


def names(schema: object) -> tuple[str, ...]:
    """The entries of a schema's vectors, in order.

    Raises
    ------
    ClassifierError
        This version does not know the schema.
    """
    if schema in NAMES:
        return NAMES[str(schema)]
    entries = width(schema)
    if entries is None:
        raise ClassifierError(
            f"the feature schema {schema!r} is not known to this lm-eval-tandem, which computes "
            f"{', '.join(map(repr, NAMES))}, 'hidden-D/1' and 'hidden-lora-D/1'"
        )
    return tuple(f"hidden_{number}" for number in range(entries))


def vectors(schema: str, prompt: Floats, probed: Floats | None) -> Floats:
    """Put input vectors together under a schema.

    Parameters
    ----------
    schema
        A known schema.
    prompt
        What is known of the prompt: the 18 statistics (..., 18), whose last entry is the stage; for `PROBE` the stage
        alone (..., 1) suffices; for hidden states those instead (..., D).
    probed
        The 13 features of a probe (..., 13); None for a schema without one.

    Returns
    -------
    NDArray[numpy.float64]
        Shape (..., F), entries in the order of `names(schema)`.
    """
    if not uses_probe(schema):
        return prompt
    assert probed is not None
    joined = (probed, prompt[..., -1:]) if schema == PROBE else (prompt, probed)
    return np.concatenate(joined, axis=-1)
