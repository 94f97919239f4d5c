"""What a watcher is told of an ensemble's answer: its beginning, then longer texts of it, and the whole at last."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

import tiny
from lm_eval_tandem.cascade import live_text
from lm_eval_tandem.cascade.prompts import Question
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.cascade.watcher import Watcher
from lm_eval_tandem.engines import Sampling
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.engines.hf.joint import JointEngine
from lm_eval_tandem.engines.rating import Candidate, Score
from lm_eval_tandem.ensembles.ensemble import Aggregation, Ensemble, Selector
from lm_eval_tandem.ensembles.responses import BestOf, One, Vote, extractor
from lm_eval_tandem.ensembles.run import Member
from lm_eval_tandem.ensembles.segments import Segments
from lm_eval_tandem.ensembles.tokens import Tokens

QUESTION, LENGTH = "How many coins?", 24


class LettersE:
    """A scorer: the number of letters e."""

    name, parameters, identity = "letters", 1000, {"scorer": "letters"}

    async def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        return [Score(float(one.text.count("e")), len(one.text), 0.0) for one in candidates]

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Log(Watcher):
    """Keeps what it is told; an exception of it would be that of the event loop."""

    begun: list[tuple[str, int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def answer_begun(self, writer: str, stage: int) -> None:
        self.begun.append((writer, stage))

    def answer_grew(self, text: str) -> None:
        self.texts.append(text if self.begun else "before the beginning")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, HFEngine]]:
    base = tmp_path_factory.mktemp("watched")
    made = {"a": ("qwen3", 3, None), "b": ("llama", 1, tiny.other_tokenizer())}
    loaded = {
        name: HFEngine({"pretrained": str(tiny.save(base / name, *given)), "dtype": "float32", "device": "cpu"})
        for name, given in made.items()
    }
    yield loaded
    for engine in loaded.values():
        engine.close()


PLANS: dict[str, tuple[Any, Selector, str | None, int]] = {
    # aggregation, selection, the writer where it is known, and the least number of texts
    "one": (lambda engines: One(), Selector("random", 1), None, 5),
    "vote": (lambda engines: Vote(extractor("[a-z]+")), Selector(), None, 1),
    "best of": (lambda engines: BestOf(LettersE()), Selector(), None, 1),
    "by turns": (lambda engines: Segments("loop", 5), Selector(), "", 8),
    "drawn": (lambda engines: Segments("random", 5), Selector(), "", 8),
    "rewarded": (lambda engines: Segments("reward_based", 5, scorer=LettersE()), Selector(), "", 3),
    "by token": (lambda engines: tokens_of(engines), Selector(), "", 5),
}


def tokens_of(engines: dict[str, HFEngine]) -> Tokens:
    joint = JointEngine(list(engines.values()), union=True)
    return Tokens(joint, joint)


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("plan", PLANS)
def test_an_ensemble_s_answer_is_told_while_it_grows(
    engines: dict[str, HFEngine], plan: str, stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_text, "INTERVAL", 0.0)
    monkeypatch.setattr(live_text, "DECODING_SHARE", 1e9)
    make, selector, writer, least = PLANS[plan]
    aggregation: Aggregation = make(engines)
    members = tuple(Member(name, engine, f"lab/{name}") for name, engine in engines.items())
    joint = aggregation.engine if isinstance(aggregation, Tokens) else None
    ensemble = Ensemble(members, selector, aggregation, "ensemble:test", joint)

    def ask(stop: tuple[str, ...], watcher: Watcher | None = None) -> tuple[str, dict[str, Any]]:
        task = Task(Question(QUESTION), Sampling(LENGTH, stop, seed=42), "t", 1)
        text, record = asyncio.run(ensemble.answer(task, *([] if watcher is None else [watcher])))
        return text, {name: value for name, value in asdict(record).items() if not name.endswith("seconds")}

    stop: tuple[str, ...] = ()
    if stopped:
        whole, _ = ask(())
        stop = (whole[len(whole) // 2 :][:3],)
    text, record = ask(stop)
    log = Log()
    assert ask(stop, log) == (text, record)
    ((begun_by, stage),) = log.begun
    assert stage == 0
    assert begun_by == (record["segments"][0]["writer"] if writer is None else writer)
    assert log.texts[-1] == text
    assert all(text.startswith(one) for one in log.texts)
    assert list(map(len, log.texts)) == sorted(set(map(len, log.texts)))
    assert stopped or len(log.texts) >= least
    if joint is not None:
        joint._worker.close()
