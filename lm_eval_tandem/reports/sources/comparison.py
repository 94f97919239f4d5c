"""`Comparison`: the runs of one pair on one domain, compared with each other on the same questions; and the oracle.

This is what almost every section of a report works on. `grouping` makes comparisons out of runs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.digits import mean, subtract, without_last_bits
from lm_eval_tandem.reports.sources.joining import Joined
from lm_eval_tandem.reports.sources.labels import natural_order, run_label, slug
from lm_eval_tandem.reports.sources.question_settings import CHAT_TEMPLATE, NO_TEMPLATE
from lm_eval_tandem.reports.sources.runs import Floats, Run
from lm_eval_tandem.reports.table import CostUnit, cost_unit
from lm_eval_tandem.training.bootstrap import Interval, central_interval, difference_interval, resampled_means

ORACLE = "oracle (not a policy)"
"""Name and policy of the oracle's row."""
POLICY_ORDER = (
    *("intern", "stage", "handoff", "outline", "steps", "verify"),
    *("mentor", "budget_forcing", "ensemble", "llm_cascade", "escalate", "cascade"),
)
"""Policies without their number, in the order in which tables list them."""
RESAMPLED = ("tflops", "length", "mentor_tokens", "bill", "seconds", "dollars")
"""Measures whose means are given with bootstrap intervals."""


@dataclass(frozen=True)
class Comparison:
    """Runs of one pair on one domain, all on the same questions.

    Attributes
    ----------
    domain
        Name of the task or group of tasks.
    pair
        What the pair is called in headings.
    runs
        Runs of the pair's policies in `POLICY_ORDER`, then runs of other models; at least one.
    partial
        Runs of other models that lack some of these questions, on those that they have in common with the others.

    Notes
    -----
    "Always-high" is the fixed stage with the highest effort. The oracle takes for each question the cheapest fixed
    stage whose answer is correct; it knows the grades, so no policy can do better.
    """

    domain: str
    pair: str
    runs: tuple[Run, ...]
    partial: tuple[Joined, ...] = ()

    @property
    def name(self) -> str:
        """A short name for files and anchors."""
        return slug(f"{self.domain}-{self.pair}")

    @property
    def title(self) -> str:
        """Domain and pair, for headings."""
        return f"{self.domain}, {self.pair}"

    @property
    def n_questions(self) -> int:
        """Number of questions that each run answered."""
        return len(self.runs[0].questions)

    @cached_property
    def usual(self) -> tuple[Run, ...]:
        """The runs without repetitions that were asked in another way: of each system the run asked as most runs were.

        Sections that need one run of each policy use these. Tables of all runs have the others as rows of their own.
        """
        ways = Counter(way_asked(run) for run in self.runs)
        chosen: dict[str, Run] = {}
        for run in self.runs:
            before = chosen.get(run.system)
            if before is None or ways[way_asked(run)] > ways[way_asked(before)]:
                chosen[run.system] = run
        return tuple(run for run in self.runs if chosen[run.system] is run)

    @property
    def intern(self) -> Run | None:
        """The run of the intern alone."""
        return self.stages.get(0)

    @property
    def mentor(self) -> Run | None:
        """The run of the mentor alone."""
        return self._first_of("mentor")

    @property
    def stages(self) -> dict[int, Run]:
        """Runs of fixed stages by stage; stage 0 is the intern alone."""
        stages = {int(run.policy.partition(":")[2]): run for run in self.usual if run.policy.startswith("stage:")}
        intern = self._first_of("intern")
        return dict(sorted({**({0: intern} if intern else {}), **stages}.items()))

    def _first_of(self, policy: str) -> Run | None:
        return next((run for run in self.usual if run.policy.partition(":")[0] == policy), None)

    @property
    def efforts(self) -> tuple[int, ...]:
        """Number of mentor tokens allowed in total at each stage, from stage 1 on; empty if no run recorded it."""
        recorded = [run for run in self.runs if "efforts" in run.description]
        # a run of both models is the better source: one of a single model may have been made with other efforts
        recorded.sort(key=lambda run: not run.has_both_models)
        return tuple(recorded[0].description["efforts"]) if recorded else ()

    @property
    def all_stages(self) -> dict[int, Run] | None:
        """`stages` if there is a run of each, stage 0 included; otherwise None."""
        stages = self.stages
        return stages if self.efforts and list(stages) == list(range(len(self.efforts) + 1)) else None

    @property
    def always_high(self) -> Run | None:
        """The run of the fixed stage with the highest effort."""
        return self.stages.get(len(self.efforts)) if self.efforts else None

    @property
    def cascades(self) -> list[Run]:
        """The runs of the policy cascade: one per classifier."""
        return [run for run in self.usual if run.policy == "cascade"]

    @property
    def cascade(self) -> Run | None:
        """The cascade that other policies are compared with.

        This is the one with the classifier that ships with the pair; otherwise one with the default recipe, its own
        choice of inputs, and a single classifier for all subjects.
        """
        return min(self.cascades, key=distance_from_default, default=None)

    @property
    def paper_cascade(self) -> Run | None:
        """The cascade whose classifier was fitted with the paper's recipe on the paper's statistics."""
        fitted = (run for run in self.cascades if run.description.get("recipe") == "paper")
        return next((run for run in fitted if input_schema(run).startswith("statistics")), None)

    @property
    def unit(self) -> CostUnit:
        """The unit in which costs are printed."""
        return cost_unit(mean(run.measures["tflops"]) for run in self.runs if "tflops" in run.measures)

    def label(self, run: Run) -> str:
        """Return what a run is called in this comparison; see `labels.run_label`."""
        if run.policy == ORACLE:
            return ORACLE
        known = [*self.runs, *[joined.run for joined in self.partial]]
        return run_label(run, [other for other in known if other.policy == run.policy])

    @property
    def all_places(self) -> NDArray[np.int64]:
        """Int (Q,): the places of all questions."""
        return np.arange(self.n_questions)

    @property
    def others(self) -> list[Run]:
        """The runs of other models on all of these questions."""
        return [run for run in self.runs if run.model is not None]

    @property
    def reference(self) -> Run:
        """The run that others are set beside where how they were asked matters: the cascade, or the first."""
        return self.cascade or self.runs[0]

    @cached_property
    def oracle(self) -> Run | None:
        """For each question the cheapest fixed stage that is correct, or the intern alone if none is.

        None unless all fixed stages were run and their costs are known.
        """
        stages = self.all_stages
        if stages is None or not all("tflops" in run.measures for run in stages.values()):
            return None
        runs = list(stages.values())

        def by_stage(arrays: list[Floats]) -> Floats:
            return np.stack(arrays, axis=1)

        correct = np.stack([run.correct for run in runs], axis=1)
        cost = by_stage([run.measures["tflops"] for run in runs])
        # stages after the mentor's end cost the same; rounding makes them tie, and argmin takes the first
        cheapest = np.where(correct, without_last_bits(cost), np.inf).argmin(axis=1)
        taken = np.arange(len(cost)), cheapest
        shared = set.intersection(*(set(run.measures) for run in runs))
        return replace(
            runs[0],
            name=ORACLE,
            policy=ORACLE,
            grades=by_stage([run.grades for run in runs])[taken],
            measures={name: by_stage([run.measures[name] for run in runs])[taken] for name in shared},
            records=(),
            description={},
        )

    @property
    def rows(self) -> list[Run]:
        """Every run, and the oracle last."""
        return [*self.runs, *([self.oracle] if self.oracle else [])]

    @cached_property
    def _means(self) -> Mapping[tuple[str, str], Floats]:
        """Means over bootstrap resamples by run and measure ("grades" too), from the same resamples for every run."""
        columns: dict[tuple[str, str], Floats] = {}
        for run in self.rows:
            columns[_key(run), "grades"] = run.grades
            columns |= {(_key(run), name): run.measures[name] for name in RESAMPLED if name in run.measures}
        means = resampled_means(np.stack(list(columns.values()), axis=1))
        return {key: means[:, i] for i, key in enumerate(columns)}

    def resampled(self, run: Run, measure: str = "grades") -> Floats:
        """Return means of a measure over bootstrap resamples; resample i has the same questions for every run."""
        return self._means[_key(run), measure]

    def interval(self, run: Run, measure: str) -> Interval:
        """Return the 95 % interval of the mean of a measure."""
        return central_interval(self.resampled(run, measure))

    def difference(self, run: Run, other: Run) -> tuple[float, Interval]:
        """Return by how much the accuracy exceeds another run's, and its paired 95 % interval."""
        resampled = subtract(self.resampled(run), self.resampled(other))
        points = float(subtract(mean(run.grades), mean(other.grades)))
        return points, difference_interval(run.grades, other.grades, resampled)

    def ratio(self, run: Run, other: Run, measure: str = "tflops") -> tuple[float, Interval]:
        """Return the mean of a measure divided by another run's, and its paired 95 % interval."""
        value = mean(run.measures[measure]) / mean(other.measures[measure])
        return value, central_interval(self.resampled(run, measure) / self.resampled(other, measure))

    def gap_closed(self, run: Run) -> tuple[float, Interval] | None:
        """Return which share of the cost between always-high and the oracle a run saves, with its 95 % interval.

        1 means that it costs as little as the oracle, 0 as much as always-high. None if one of the costs is not known,
        or always-high costs no more than the oracle. Resamples without such a gap say nothing of its share.
        """
        high, oracle = self.always_high, self.oracle
        if high is None or oracle is None or "tflops" not in run.measures:
            return None
        lowest, cost, highest = (mean(one.measures["tflops"]) for one in (oracle, run, high))
        gap = float(subtract(highest, lowest))
        if gap <= 0:
            return None
        low, own, top = (self.resampled(one, "tflops") for one in (oracle, run, high))
        has_gap = top > low  # of few questions, some resamples hold none on which the two differ
        shares = subtract(top, own)[has_gap] / (top - low)[has_gap]
        return float(subtract(highest, cost)) / gap, central_interval(shares)

    @property
    def subjects(self) -> list[str]:
        """The subjects of the questions in natural order; empty if there is only one."""
        subjects = sorted(set(self.runs[0].subjects), key=natural_order)
        return subjects if len(subjects) > 1 else []

    def subject_mask(self, subject: str) -> NDArray[np.bool_]:
        """Return which questions have a subject, bool (Q,)."""
        return np.array(self.runs[0].subjects) == subject


def way_asked(run: Run) -> str:
    """Return how a run was asked; mentor and intern may each have the chat template of their own model."""
    ways = {
        task: {**settings, CHAT_TEMPLATE: str(settings.get(CHAT_TEMPLATE) == NO_TEMPLATE)}
        for task, settings in run.settings.items()
    }
    return json.dumps(ways, sort_keys=True)


def _key(run: Run) -> str:
    """Return what distinguishes a run within a comparison; the oracle is a changed copy of another run."""
    return ORACLE if run.policy == ORACLE else run.identity


def input_schema(run: Run) -> str:
    """Return the schema of a cascade's classifier, which names its inputs; runs that recorded none had statistics."""
    return str(run.classifier_facts.get("schema") or "statistics")


def distance_from_default(run: Run) -> tuple[bool, ...]:
    """Return a sorting key: the smallest is the cascade that is closest to the classifier that ships with the pair."""
    facts, schema = run.classifier_facts, input_schema(run)
    return (
        "classifier" in run.arguments,
        run.description.get("recipe") != "default",
        facts.get("per") == "task",
        not schema.startswith(("statistics", "probe")),
        len(facts.get("tasks") or ()) > 1,
        facts.get("labels") == "mentor",
        "probe" not in schema,
    )
