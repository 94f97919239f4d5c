"""A study: the runs of one pair on one domain, every policy on the same questions, and the oracle beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from lm_eval_tandem.digits import apart, listed, mean, settled, typed
from lm_eval_tandem.reports.intervals import Interval, resampled_means, span
from lm_eval_tandem.reports.sources.runs import Floats, Run
from lm_eval_tandem.reports.table import Missing, Unit, unit_of

ORACLE = "oracle (not a policy)"
ORDER = ("intern", "stage", "mentor", "budget_forcing", "llm_cascade", "escalate", "cascade")
NOT_REPEATED = ("policy", "ledger", "classifier", "thresholds", "record_features")
"""Arguments that a command for another run does not take over."""
FIGURES = ("tflops", "length", "mentor_tokens", "dollars")


@dataclass(frozen=True)
class Study:
    """Runs of one pair on one domain, in the order of `ORDER`, all on the same questions.

    pair: how the pair is called. runs: those of its policies, then those of other models.
    """

    domain: str
    pair: str
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """A short name for files and anchors."""
        return slug(f"{self.domain}-{self.pair}")

    @property
    def title(self) -> str:
        """For headings."""
        return f"{self.domain}, {self.pair}"

    @property
    def questions(self) -> int:
        """How many questions each run answered."""
        return len(self.runs[0].keys)

    def first(self, policy: str) -> Run | None:
        """The first run of a policy, given without its number."""
        return next((run for run in self.runs if run.policy.partition(":")[0] == policy), None)

    @property
    def intern(self) -> Run | None:
        """The intern alone."""
        return self.stages.get(0)

    @property
    def mentor(self) -> Run | None:
        """The mentor alone."""
        return self.first("mentor")

    @property
    def stages(self) -> dict[int, Run]:
        """The runs of fixed stages; stage 0 is the intern alone."""
        found = {int(run.policy.partition(":")[2]): run for run in self.runs if run.policy.startswith("stage:")}
        alone = self.first("intern")
        return dict(sorted({**({0: alone} if alone else {}), **found}.items()))

    @property
    def efforts(self) -> tuple[int, ...]:
        """Mentor tokens in total after each stage."""
        told = sorted(
            (run for run in self.runs if "efforts" in run.about),
            key=lambda run: "mentor" not in run.about or "intern" not in run.about,
        )
        return tuple(told[0].about["efforts"]) if told else ()

    @property
    def all_stages(self) -> dict[int, Run] | None:
        """The runs of all fixed stages, 0 included; None where one is missing."""
        stages = self.stages
        return stages if self.efforts and list(stages) == list(range(len(self.efforts) + 1)) else None

    @property
    def high(self) -> Run | None:
        """Always the highest effort."""
        return self.stages.get(len(self.efforts)) if self.efforts else None

    @property
    def cascades(self) -> list[Run]:
        """The runs of the method itself; one for each classifier."""
        return [run for run in self.runs if run.policy == "cascade"]

    @property
    def cascade(self) -> Run | None:
        """The run of the method that the others are compared with.

        That of the classifier that ships with the pair; otherwise of the default recipe, with its own choice of inputs,
        for all subjects.
        """
        return min(self.cascades, key=remoteness, default=None)

    @property
    def paper_s(self) -> Run | None:
        """The cascade with a classifier made as the paper made its own, of statistics."""
        papers = (run for run in self.cascades if run.about.get("recipe") == "paper")
        return next((run for run in papers if judged_by(run).startswith("statistics")), None)

    @property
    def unit(self) -> Unit:
        """The unit in which costs are shown."""
        return unit_of(mean(run.columns["tflops"]) for run in self.runs if "tflops" in run.columns)

    def label(self, run: Run) -> str:
        """How a run is called within the study: its policy, and what tells it from others of that policy."""
        if not run.policy:
            return run.name
        alike = [other for other in self.runs if other.policy == run.policy]
        for told in (policy_only, with_classifier, with_recipe, with_thresholds):
            if len({told(other) for other in alike}) == len(alike):
                return told(run)
        return f"{with_thresholds(run)}, number {alike.index(run) + 1}"

    @cached_property
    def oracle(self) -> Run | None:
        """Per question the cheapest fixed stage that is right, the intern alone where none is; no policy knows it."""
        stages = self.all_stages
        if stages is None or not all("tflops" in run.columns for run in stages.values()):
            return None
        right = np.stack([run.right for run in stages.values()], axis=1)
        cost = np.stack([run.columns["tflops"] for run in stages.values()], axis=1)
        # stages that cost the same, such as those after the mentor's end, tie: the first one is taken
        cheapest = np.where(right, settled(cost), np.inf).argmin(axis=1)
        rows = np.arange(len(cost))
        score = np.stack([run.score for run in stages.values()], axis=1)[rows, cheapest]
        shared = set.intersection(*(set(run.columns) for run in stages.values()))
        picked = {
            name: np.stack([run.columns[name] for run in stages.values()], axis=1)[rows, cheapest] for name in shared
        }
        return replace(stages[0], name=ORACLE, policy=ORACLE, score=score, columns=picked, records=(), about={})

    @property
    def rows(self) -> list[Run]:
        """Every run, and the oracle last."""
        return [*self.runs, *([self.oracle] if self.oracle else [])]

    @cached_property
    def _resampled(self) -> dict[tuple[str, str], Floats]:
        named = {(run.identity if run.policy != ORACLE else ORACLE, "score"): run.score for run in self.rows}
        for run in self.rows:
            for name in FIGURES:
                if name in run.columns:
                    named[run.identity if run.policy != ORACLE else ORACLE, name] = run.columns[name]
        means = resampled_means(np.stack(list(named.values()), axis=1))
        return {key: means[:, i] for i, key in enumerate(named)}

    def resampled(self, run: Run, name: str = "score") -> Floats:
        """Means of a figure of a run over bootstrap resamples of the questions, the same resamples for every run."""
        return self._resampled[run.identity if run.policy != ORACLE else ORACLE, name]

    def interval(self, run: Run, name: str) -> Interval:
        """Of the mean of a figure."""
        return span(self.resampled(run, name))

    def difference(self, run: Run, other: Run, name: str = "score") -> tuple[float, Interval]:
        """Mean of a figure above another run's, with the interval of the paired difference."""
        a, b = (one.score if name == "score" else one.columns[name] for one in (run, other))
        return float(apart(mean(a), mean(b))), span(apart(self.resampled(run, name), self.resampled(other, name)))

    def ratio(self, run: Run, other: Run, name: str = "tflops") -> tuple[float, Interval]:
        """Mean of a figure in shares of another run's, with the interval of the paired ratio."""
        value = mean(run.columns[name]) / mean(other.columns[name])
        return value, span(self.resampled(run, name) / self.resampled(other, name))

    def closed(self, run: Run) -> tuple[float, Interval] | None:
        """The share of the costs between always-high and the oracle that a run saves."""
        high, oracle = self.high, self.oracle
        if high is None or oracle is None or "tflops" not in run.columns:
            return None
        least, spent, most = (mean(one.columns["tflops"]) for one in (oracle, run, high))
        gap = float(apart(most, least))
        if gap <= 0:
            return None
        lowest, here, highest = (self.resampled(one, "tflops") for one in (oracle, run, high))
        return float(apart(most, spent)) / gap, span(apart(highest, here) / (highest - lowest))

    @property
    def subjects(self) -> list[str]:
        """The subjects of the questions, if there are several."""
        found = sorted(set(self.runs[0].subjects), key=in_order)
        return found if len(found) > 1 else []

    def of_subject(self, subject: str) -> np.ndarray:
        """Which questions have a subject."""
        return np.array(self.runs[0].subjects) == subject

    def missing(self, what: str, policies: Iterable[str], ledger: bool = False) -> Missing:
        """A sentence that says what is missing, with the command that makes it."""
        wanted = [policy for policy in policies if not self.has(policy, ledger)]
        return Missing(
            f"{what} needs the runs {', '.join(wanted)} of {self.title}"
            + (", each with ledger=FILE and record_features=True." if ledger else "."),
            "\n".join(self.command(policy, ledger) for policy in wanted),
        )

    def has(self, policy: str, ledger: bool) -> bool:
        """Whether a run of the policy (without its number where it ends in `:N`) is there, with its ledger."""
        wanted = "intern" if policy == "stage:0" else policy
        found = [run for run in self.runs if run.policy == wanted or run.policy.startswith(wanted.replace(":N", ":"))]
        return any(run.records or not ledger for run in found)

    def command(self, policy: str, ledger: bool = False) -> str:
        """The harness's command line for a policy, made like one of the study's runs."""
        like = next((run for run in self.runs if run.policy), self.runs[0])
        given = {name: value for name, value in like.arguments.items() if name not in NOT_REPEATED}
        if ledger:
            given |= {"ledger": f"RUNS/ledger-{policy.replace(':', '-')}.jsonl", "record_features": True}
        arguments = ",".join(f"{name}={shown(value)}" for name, value in {"policy": policy, **given}.items())
        words = ["lm_eval --model tandem", f"--model_args {arguments}", f"--tasks {self.domain}", *like.flags]
        words += ["--include_path task_configs"] if self.domain.startswith("tandem_") else []
        return " ".join([*words, "--log_samples", "--output_path RUNS"])


def judged_by(run: Run) -> str:
    """The schema of a cascade's classifier: what it is shown."""
    return str((run.about.get("judge") or {}).get("schema") or "statistics")


def remoteness(run: Run) -> tuple[bool, ...]:
    """How far a cascade is from the pair's own one."""
    judge, inputs = run.about.get("judge") or {}, judged_by(run)
    return (
        "classifier" in run.arguments,
        run.about.get("recipe") != "default",
        judge.get("per") == "task",
        not inputs.startswith(("statistics", "probe")),
        len(judge.get("tasks") or ()) > 1,
        judge.get("labels") == "mentor",
        "probe" not in inputs,
    )


def model_name(model: str) -> str:
    """A model without the folder or account it is in."""
    return re.split(r"[/\\]", str(model).rstrip("/\\"))[-1]


def shown(value: Any) -> str:
    """A value without the place of a file on this machine."""
    if isinstance(value, float):
        value = typed(value)
    text = ":".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return (
        re.sub(r"(?:^|(?<=[=,;: ]))(?:~|/|[A-Za-z]:\\)[^,; ]*[/\\]", "…/", text)
        if not text.startswith("http")
        else text
    )


def policy_only(run: Run) -> str:
    """The policy."""
    return run.policy


def with_classifier(run: Run) -> str:
    """The policy and its classifier."""
    return f"{run.policy} ({run.about.get('classifier', run.name)})"


def with_recipe(run: Run) -> str:
    """The policy, its classifier, and how that was fitted."""
    return f"{run.policy} ({run.about.get('classifier', run.name)}, {run.about.get('recipe', '')})"


def with_thresholds(run: Run) -> str:
    """The policy, its classifier, and the thresholds."""
    limits = listed(run.about.get("thresholds") or ())
    return f"{run.policy} ({run.about.get('classifier', run.name)}, {limits})"


def slug(text: str) -> str:
    """Letters, digits and dashes only."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def in_order(subject: str) -> tuple[str, float]:
    """A key that sorts `level 9` before `level 10`."""
    words, _, last = subject.rpartition(" ")
    return (words, float(last)) if last.replace(".", "", 1).isdigit() else (subject, 0.0)
