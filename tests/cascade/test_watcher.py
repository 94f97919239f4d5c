"""What a watcher is told under every policy, on the bundled pair: in order, nothing twice, and nothing taken back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lm_eval_tandem import pair
from lm_eval_tandem.cascade import live_text
from lm_eval_tandem.cascade.algorithm import Cascade
from lm_eval_tandem.cascade.answer import PartialAnswer
from lm_eval_tandem.cascade.live_text import LiveText
from lm_eval_tandem.cascade.policies import POLICIES, Policy
from lm_eval_tandem.cascade.prompts import Prompts, Question, Wording
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.cascade.watcher import Watcher
from lm_eval_tandem.engines import Prompt, Sampling
from lm_eval_tandem.engines.cached import CachedEngine
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.harness.settings import pair_profile
from lm_eval_tandem.judge.probe import Probe
from lm_eval_tandem.ledger import Judgement, Record
from lm_eval_tandem.pair import problems
from lm_eval_tandem.store import Store

EFFORTS = (12, 24, 40)
LENGTH = 60
QUESTIONS = [str(row["question"]) for row in problems.rows("math", "test", 2)]


@dataclass
class GivenJudge:
    """A judge with a given score for each stage."""

    scores: tuple[float, ...]
    thresholds: tuple[float, ...] = (0.5, 0.5, 0.5, 0.5)
    probe: Probe | None = None
    reads_prompt: bool = True

    def inputs(self, features: NDArray[np.float64], answer: PartialAnswer | None) -> NDArray[np.float64]:
        return features

    def score(self, features: NDArray[np.float64]) -> float:
        return self.scores[int(features[-1])]


@dataclass
class Log(Watcher):
    """Keeps what it is told, and what of that should not be: an exception would be that of the event loop."""

    events: list[tuple[Any, ...]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    shown: str = ""
    insight: str = ""

    def _check(self, holds: bool, fault: str) -> None:
        if not holds:
            self.faults.append(fault)

    def insight_grew(self, stage: int, text: str) -> None:
        self._check(not self.of("begun"), "an insight after the answer has begun")
        self._check(text.startswith(self.insight) and len(text) > len(self.insight), "an insight does not grow")
        self.insight = text
        self.events.append(("insight", stage, text))

    def stage_judged(self, judgement: Judgement, passed: bool) -> None:
        self._check(not self.of("begun"), "a judgement after the answer has begun")
        self.events.append(("judged", judgement.stage, passed))

    def answer_begun(self, writer: str, stage: int) -> None:
        self._check(not self.of("begun"), "it begins twice")
        self.events.append(("begun", writer, stage))

    def answer_grew(self, text: str) -> None:
        self._check(bool(self.of("begun")), "it grows before it begins")
        self._check(text.startswith(self.shown) and len(text) > len(self.shown), "it does not grow")
        self.shown = text
        self.events.append(("grew", text))

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [event[1:] for event in self.events if event[0] == kind]


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[HFEngine, HFEngine]]:
    loaded = [
        HFEngine({"pretrained": str(folder), "dtype": "float32", "device": "cpu", "batch_size": 4})
        for folder in (pair.MENTOR, pair.INTERN)
    ]
    yield loaded[0], loaded[1]
    for engine in loaded:
        engine.close()


@pytest.fixture
def cascade(engines: tuple[HFEngine, HFEngine]) -> Cascade:
    prompts = Prompts(Wording(**pair_profile()["insights"]))
    return Cascade(*engines, prompts, Policy("cascade"), EFFORTS, GivenJudge((0.1,) * 4), step_end=";")


@pytest.fixture(autouse=True)
def every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report at every token, so that all of them are seen here."""
    monkeypatch.setattr(live_text, "INTERVAL", 0.0)
    monkeypatch.setattr(live_text, "DECODING_SHARE", 1e9)


def under(cascade: Cascade, policy: str) -> Cascade:
    parsed = Policy.parse(policy, 3)
    prompts, efforts = parsed.prompts(cascade.prompts), parsed.efforts(cascade.efforts)
    return replace(cascade, policy=parsed, prompts=prompts, efforts=efforts)


def comparable(record: Record) -> dict[str, Any]:
    """A record without what a clock says."""
    values = {name: value for name, value in asdict(record).items() if not name.endswith("seconds")}
    for stage in values["stages"]:
        del stage["seconds"]
    return values


def watched(cascade: Cascade, **sampling: Any) -> tuple[str, Record, Log]:
    """The answer and what was told of it; both are those that nobody watches, and the end of the log is the answer."""
    task = Task(Question(QUESTIONS[0]), replace(Sampling(LENGTH), **sampling), "t", 1)
    text, record = asyncio.run(cascade.answer(task))
    log = Log()
    same, other = asyncio.run(cascade.answer(task, log))
    assert same == text
    assert comparable(other) == comparable(record)
    assert log.faults == []
    assert log.shown == text, "the whole answer is told at last"
    assert len(log.of("begun")) == 1
    return text, record, log


PLANS: dict[str, tuple[str, GivenJudge | None, str, int]] = {
    # policy, judge, writer and stage of the answer
    "passes at once": ("cascade", GivenJudge((0.9,) * 4), "intern", 0),
    "passes later": ("cascade", GivenJudge((0.1, 0.1, 0.9, 0.9)), "intern", 2),
    "best of all": ("cascade", GivenJudge((0.1, 0.4, 0.2, 0.3)), "intern", 1),
    "probe passes at once": ("cascade", GivenJudge((0.9,) * 4, probe=Probe(6)), "intern", 0),
    "probe passes later": ("cascade", GivenJudge((0.1, 0.1, 0.9, 0.9), probe=Probe(6)), "intern", 2),
    "intern": ("intern", None, "intern", 0),
    "mentor": ("mentor", None, "mentor", -1),
    "stage 0": ("stage:0", None, "intern", 0),
    "stage 2": ("stage:2", None, "intern", 2),
    "handoff": ("handoff:9", None, "", 1),
    "outline": ("outline:9", None, "intern", 1),
    "steps": ("steps:0.2", None, "", 1),
    "verify": ("verify:5", None, "", 1),
    "budget forcing": ("budget_forcing:9", None, "mentor", -1),
    "llm_cascade, alone": ("llm_cascade", GivenJudge((0.9,) * 4), "intern", 0),
    "llm_cascade, guided": ("llm_cascade", GivenJudge((0.1,) * 4, probe=Probe(6)), "intern", 3),
    "escalate": ("escalate", GivenJudge((0.1,) * 4), "mentor", -1),
}


def test_every_policy_is_watched_here() -> None:
    assert {plan[0].partition(":")[0] for plan in PLANS.values()} == set(POLICIES)


@pytest.mark.parametrize("plan", PLANS)
def test_a_watcher_changes_nothing_and_is_told_all_in_order(cascade: Cascade, plan: str) -> None:
    policy, judge, writer, stage = PLANS[plan]
    text, record, log = watched(under(replace(cascade, judge=judge), policy))
    assert log.of("begun") == [(writer, stage)]
    if policy.partition(":")[0] not in ("steps", "verify"):
        assert record.stage == stage
    judged = [(one.stage, one is record.stages[-1] and record.reason == "sufficient") for one in record.stages]
    assert log.of("judged") == judged
    insights = log.of("insight")
    assert {at for at, _ in insights} == (
        set() if policy.startswith("handoff") else set(range(1, record.mentor_stages + 1))
    )
    assert len(insights) >= 3 * record.mentor_stages or policy.startswith("handoff")
    if text:
        assert len(log.of("grew")) > 2, "it did not grow"


def test_insights_and_judgements_take_turns(cascade: Cascade) -> None:
    _, _, log = watched(replace(cascade, judge=GivenJudge((0.1, 0.1, 0.9, 0.9))))
    order = [event[:2] for event in log.events if event[0] in ("judged", "insight")]
    assert list(dict.fromkeys(order)) == [("judged", 0), ("insight", 1), ("judged", 1), ("insight", 2), ("judged", 2)]


def test_an_insight_is_told_as_it_was_read(cascade: Cascade) -> None:
    mentor = cascade.mentor
    assert mentor is not None
    _, record, log = watched(under(cascade, "stage:2"))
    prompt = cascade.prompts.mentor(mentor, Question(QUESTIONS[0]))
    ids = asyncio.run(mentor.generate(Prompt(prompt), Sampling(record.tokens.mentor_new))).token_ids
    assert log.insight == mentor.decode(ids)


def test_an_accepted_probe_is_shown_at_once_and_a_refused_one_never(cascade: Cascade) -> None:
    judge = GivenJudge((0.1, 0.1, 0.9, 0.9), probe=Probe(6))
    text, _, log = watched(replace(cascade, judge=judge))
    (first,), *_ = log.of("grew")
    intern = cascade.intern
    assert intern is not None
    assert first == intern.decode(tuple(intern.encode(text))[: len(intern.encode(first))])
    assert len(intern.encode(first)) >= 4, "the probe was not shown as a whole"
    refused = watched(under(replace(cascade, judge=None), "stage:0"))[0]
    assert refused != text
    assert not any(shown != text[: len(shown)] for (shown,) in log.of("grew"))


@pytest.mark.parametrize("policy", ["cascade", "escalate", "llm_cascade", "stage:2"])
@pytest.mark.parametrize("length", [LENGTH, 20])
def test_a_mentor_that_begins_the_answer_is_shown_where_it_is_sure_to(
    cascade: Cascade, policy: str, length: int
) -> None:
    """Where a stage may be refused, what it begins with is an insight until it has passed."""
    handoff = replace(cascade, prompts=Prompts(guidance="handoff"), judge=GivenJudge((0.1, 0.4, 0.2, 0.2)))
    text, record, log = watched(under(handoff, policy), max_tokens=length)
    sure = policy in ("stage:2", "llm_cascade")
    assert bool(log.of("insight")) != sure
    if sure:
        assert log.of("begun")[0][0] == ""
        assert any(len(shown) < record.segments[0].characters for (shown,) in log.of("grew") if record.segments)
    if policy == "escalate" and record.reason == "escalated":
        assert log.of("begun") == [("mentor", -1)]
    assert text


@pytest.mark.parametrize("plan", ["passes later", "probe passes later", "mentor", "handoff", "steps", "verify"])
@pytest.mark.parametrize("where", [0.3, 0.6])
def test_a_stop_string_is_never_shown_and_nor_is_its_beginning(cascade: Cascade, plan: str, where: float) -> None:
    policy, judge, *_ = PLANS[plan]
    planned = under(replace(cascade, judge=judge), policy)
    whole, _, _ = watched(planned)
    at = int(where * len(whole))
    stop = whole[at : at + 4]
    text, record, log = watched(planned, stop=(stop, stop + "never"))
    assert text == whole[: whole.index(stop)]
    assert record.finish_reason == "stop"
    assert all(len(shown) <= len(text) for (shown,) in log.of("grew"))


@pytest.mark.parametrize("plan", ["best of all", "handoff", "steps"])
def test_sampled_answers_are_the_same_with_a_watcher(cascade: Cascade, plan: str) -> None:
    policy, judge, *_ = PLANS[plan]
    watched(under(replace(cascade, judge=judge), policy), temperature=1.0, seed=7)


def test_staged_insights_grow_as_one_text(cascade: Cascade) -> None:
    wording = replace(cascade.prompts.wording, deepen="\nDeeper:")
    staged = replace(cascade, prompts=Prompts(wording, "staged"))
    _, _, log = watched(under(staged, "stage:3"))
    assert {stage for stage, _ in log.of("insight")} == {1, 2, 3}


def test_a_stored_answer_is_told_as_a_whole(cascade: Cascade, tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    assert cascade.mentor is not None
    assert cascade.intern is not None
    stored = replace(cascade, mentor=CachedEngine(cascade.mentor, store), intern=CachedEngine(cascade.intern, store))
    first, second = (watched(under(stored, "stage:1")) for _ in range(2))
    assert first[0] == second[0]
    assert len(second[2].of("grew")) == 1
    store.close()


def test_reports_are_limited_in_time_and_the_last_text_is_told(
    cascade: Cascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_text, "INTERVAL", 1e6)
    text, _, log = watched(under(cascade, "mentor"))
    assert len(log.of("grew")) == 2, "the first text and the whole one"
    assert log.of("grew")[-1] == (text,)


def test_of_texts_that_do_not_go_on_with_the_one_before_none_is_reported() -> None:
    seen: list[str] = []
    text = LiveText(seen.append)
    for one in ("a", "", "a", "b", "ab", "axy", "abc"):
        text.show(one)
    assert seen == ["a", "ab", "abc"]
    silent = LiveText(None)
    silent.show("a")
    assert silent.growing(str) is None


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + 60
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it never came so"
        await asyncio.sleep(0.005)


class Hangup(Watcher):
    """Cancels the question at an event."""

    def __init__(self, event: str) -> None:
        self.event, self.asked = event, asyncio.Event()
        self.told_afterwards = 0

    def _happened(self, event: str) -> None:
        self.told_afterwards += self.asked.is_set()
        if event == self.event:
            self.asked.set()

    def insight_grew(self, stage: int, text: str) -> None:
        self._happened("insight")

    def stage_judged(self, judgement: Judgement, passed: bool) -> None:
        self._happened("judged")

    def answer_grew(self, text: str) -> None:
        self._happened("grew")


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    ("policy", "event"),
    [
        ("mentor", "grew"),
        ("stage:3", "insight"),
        ("stage:3", "grew"),
        ("cascade", "judged"),
        ("handoff:40", "grew"),
        ("steps:0.2", "grew"),
        ("verify:9", "grew"),
    ],
)
def test_a_question_that_is_cancelled_is_worked_on_by_nobody(
    cascade: Cascade, policy: str, event: str, stored: bool, tmp_path: Path
) -> None:
    """Others go on, and nothing of the question is left in the engines."""
    assert isinstance(cascade.mentor, HFEngine)
    assert isinstance(cascade.intern, HFEngine)
    engines = (cascade.mentor, cascade.intern)
    store = Store(tmp_path / "store.sqlite")
    planned = under(replace(cascade, judge=GivenJudge((0.1, 0.1, 0.1, 0.9), probe=Probe(6))), policy)
    if stored:
        planned = replace(planned, mentor=CachedEngine(engines[0], store), intern=CachedEngine(engines[1], store))
    tasks = [Task(Question(question), Sampling(LENGTH), "t", i) for i, question in enumerate(QUESTIONS)]
    alone = asyncio.run(planned.answer(tasks[1]))[0]

    async def hang_up() -> None:
        watcher = Hangup(event)
        question = asyncio.ensure_future(planned.answer(tasks[0], watcher))
        other = asyncio.ensure_future(planned.answer(tasks[1]))
        await watcher.asked.wait()
        told = watcher.told_afterwards
        question.cancel()
        with pytest.raises(asyncio.CancelledError):
            await question
        session = tasks[0].session
        await eventually(lambda: all(not holds(engine, session) for engine in engines))
        assert watcher.told_afterwards == told
        assert (await other)[0] == alone
        await eventually(lambda: not any(engine._worker._prefixes._entries for engine in engines))
        await eventually(lambda: not any(engine._worker._decoding.running for engine in engines))

    asyncio.run(hang_up())
    store.close()


def holds(engine: HFEngine, session: str) -> bool:
    """Whether an engine works for a session, or keeps anything for it."""
    worker = engine._worker
    jobs = [*worker._to_score, *worker._to_generate, *worker._decoding.running]
    return any(job.prompt.session == session for job in jobs) or session in worker._prefixes._entries
