"""What a classifier is shown, by name: an artefact says which of these it judges and refuses every other."""

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
"""13 numbers of the answer that the intern has begun, and the stage: the prompt is not looked at by itself."""
BOTH = "statistics-18+probe-13/1"
"""The paper's 18 statistics, then the 13."""
NAMES = {
    STATISTICS: features.FEATURE_NAMES,
    PROBE: (*probe.PROBE_NAMES, "stage"),
    BOTH: (*features.FEATURE_NAMES, *probe.PROBE_NAMES),
}
"""The entries of each schema's vectors, in order; beside them stand the schemas of hidden states, one a width."""
_HIDDEN = re.compile(r"hidden-(lora-)?([1-9][0-9]{0,5})/1")


def hidden(width: int, lora: bool = False) -> str:
    """The schema of last-layer hidden states of D = `width` numbers at a prompt's last token (paper, appendix E).

    lora: of an intern that reads with a LoRA adapter, finetuned for this.
    """
    return f"hidden-{'lora-' if lora else ''}{width}/1"


def width(schema: object) -> int | None:
    """D of a schema of hidden states; None for any other."""
    found = _HIDDEN.fullmatch(str(schema))
    return None if found is None else int(found[2])


def adapted(schema: object) -> bool:
    """Whether it is a schema of hidden states under a LoRA adapter."""
    found = _HIDDEN.fullmatch(str(schema))
    return found is not None and found[1] is not None


def probing(schema: object) -> bool:
    """Whether its vectors tell of an answer that was begun."""
    return schema in (PROBE, BOTH)


def names(schema: object) -> tuple[str, ...]:
    """The entries of a schema's vectors, in order.

    Raises
    ------
    ClassifierError
        This version knows no schema of that name.
    """
    if schema in NAMES:
        return NAMES[str(schema)]
    numbers = width(schema)
    if numbers is None:
        raise ClassifierError(
            f"the feature schema {schema!r} is not known to this lm-eval-tandem, which computes "
            f"{', '.join(map(repr, NAMES))}, 'hidden-D/1' and 'hidden-lora-D/1'"
        )
    return tuple(f"hidden_{number}" for number in range(numbers))


def vectors(schema: str, statistics: Floats, probed: Floats | None) -> Floats:
    """What is shown under a schema, float64 (..., F).

    statistics: the 18 of a prompt, (..., 18), the stage last; for `PROBE` the stage alone, (..., 1), will do; for
        schemas of hidden states those in their place, (..., D).
    probed: the 13 of a probe, (..., 13); None for schemas that do not probe.
    """
    if not probing(schema):
        return statistics
    assert probed is not None
    parts = (probed, statistics[..., -1:]) if schema == PROBE else (statistics, probed)
    return np.concatenate(parts, axis=-1)
