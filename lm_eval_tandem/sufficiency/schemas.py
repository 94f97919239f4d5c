"""What a classifier is shown, by name: an artefact says which of these it judges and refuses every other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.sufficiency import features, probe

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
"""The entries of each schema's vectors, in order."""


def names(schema: object) -> tuple[str, ...]:
    """The entries of a schema's vectors, in order.

    Raises:
        ClassifierError: this version knows no schema of that name.
    """
    if schema not in NAMES:
        raise ClassifierError(
            f"the feature schema {schema!r} is not known to this lm-eval-tandem, which computes "
            f"{', '.join(map(repr, NAMES))}"
        )
    return NAMES[str(schema)]


def vectors(schema: str, statistics: Floats, probed: Floats | None) -> Floats:
    """What is shown under a schema, float64 (..., F).

    statistics: the 18 of a prompt, (..., 18), the stage last; for `PROBE` the stage alone, (..., 1), will do.
    probed: the 13 of a probe, (..., 13); None for `STATISTICS`.
    """
    if schema == STATISTICS:
        return statistics
    assert probed is not None
    parts = (probed, statistics[..., -1:]) if schema == PROBE else (statistics, probed)
    return np.concatenate(parts, axis=-1)
