"""The judge as the cascade uses it: a fitted classifier, its thresholds, and its input vector (section 2.4).

`artefact.load` returns one. The thresholds are applied in `decision`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.engines import DEFAULT_VIEW, ScoringView
from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge import input_schemas
from lm_eval_tandem.judge.artefact_config import ADAPTER, Config
from lm_eval_tandem.judge.probe import Probe, probe_features
from lm_eval_tandem.judge.registry import Estimator


class MeasuredAnswer(Protocol):
    """A partial answer of n tokens with its measurements (`cascade.answer.PartialAnswer` is one)."""

    @property
    def logprob(self) -> NDArray[np.float32]:
        """Natural log-probability of each token, (n,)."""
        ...

    @property
    def entropy(self) -> NDArray[np.float32]:
        """Entropy of each token in nats, (n,)."""
        ...

    @property
    def finish_reason(self) -> str:
        """Empty while the answer is incomplete."""
        ...


@dataclass(frozen=True)
class Sufficiency:
    """A loaded artefact: the estimator, its thresholds, and what it was fitted for.

    Parameters
    ----------
    estimator
        The fitted classifier.
    thresholds
        tau_t in [0, 1], one per stage, stage 0 first: the cascade's, or those of the policy of `for_policy`.
    name
        The name of the folder.
    schema
        The schema of the input vectors (`input_schemas`).
    pair
        The names of the two models: {"mentor": ..., "intern": ...}.
    recipe
        The recipe that it was fitted with.
    config
        All of config.json.
    probe
        How much of its answer the intern generates before it is judged; None for nothing.
    adapter
        The folder of the LoRA adapter that the intern reads with; None for its own weights.
    policy_thresholds
        Thresholds of other policies, by name.
    origin
        The repository of a hub and its commit; empty for a classifier in a folder.

    Examples
    --------
    A classifier of the 18 statistics judges a prompt that the intern has read::

        judge = artefact.load("classifiers/pair")
        score = judge.score(judge.inputs(features(stats, stage)))
    """

    estimator: Estimator
    thresholds: tuple[float, ...]
    name: str
    schema: str
    pair: dict[str, str]
    recipe: str
    config: Config
    probe: Probe | None = None
    adapter: Path | None = None
    policy_thresholds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)

    def for_policy(self, name: str) -> Sufficiency:
        """The same with the thresholds that were chosen for a policy; the cascade's where none were."""
        return replace(self, thresholds=self.policy_thresholds.get(name, self.thresholds))

    @property
    def reads_prompt(self) -> bool:
        """Whether its inputs hold statistics or the hidden state of the prompt, which take a pass of the intern."""
        return self.schema != input_schemas.PROBE

    @property
    def width(self) -> int | None:
        """D, the entries of the hidden state that it reads; None if it reads none."""
        return input_schemas.width(self.schema)

    @property
    def view(self) -> ScoringView:
        """What the intern has to measure when it reads a prompt for this classifier."""
        if self.width is None:
            return DEFAULT_VIEW
        return ScoringView(True, None if self.adapter is None else combined_checksum(self.config[ADAPTER]))

    def inputs(self, features: NDArray[np.float64], answer: MeasuredAnswer | None = None) -> NDArray[np.float64]:
        """The input vector of one judgement.

        Parameters
        ----------
        features
            The 18 statistics of the prompt, shape (18,); its hidden state (D,) for a classifier that reads one; the
            stage alone (1,) for one that does not read the prompt.
        answer
            The answer as far as the probe generated it; None for a classifier without a probe.

        Returns
        -------
        NDArray[numpy.float64]
            Shape (F,), under the classifier's schema.

        Raises
        ------
        ClassifierError
            The classifier has a probe, and no answer was given.
        """
        if self.probe is None:
            return input_schemas.vectors(self.schema, features, None)
        if answer is None:
            raise ClassifierError(f"The classifier {self.name} judges a partial answer, and none was given; pass one.")
        probed = probe_features(answer.logprob, answer.entropy, bool(answer.finish_reason), self.probe)
        return input_schemas.vectors(self.schema, features, probed)

    def score(self, features: NDArray[np.float64]) -> float:
        """s_t of Eq. 8: the probability that the intern's answer will be correct.

        Parameters
        ----------
        features
            One vector as `inputs` returns it, shape (F,), finite.

        Returns
        -------
        float
            In [0, 1].

        Raises
        ------
        ClassifierError
            The vector has another shape, or a value that is not finite.
        """
        width = self.estimator.n_features_in_
        if np.shape(features) != (width,):
            raise ClassifierError(
                f"The judge was given an array of shape {np.shape(features)}; give the "
                f"{width} finite numbers of one judgement (schema {self.schema})."
            )
        if not all(map(math.isfinite, np.asarray(features).tolist())):
            raise ClassifierError(
                "The judge was given a number that is not finite; "
                "check the intern's logits for NaN (often a dtype that overflows)."
            )
        # The checks above replace scikit-learn's own, which would take most of the judge's time.
        return float(self.estimator.positive_probability(np.reshape(features, (1, -1)))[0])


def combined_checksum(checksums: Mapping[str, str]) -> str:
    """One checksum of several files, from theirs by name; it identifies an adapter."""
    return hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()
