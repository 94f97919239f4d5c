"""Answers of ensembles, by response and by segment, against the same done by hand; three models of two tokenizers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny
from lm_eval_tandem.accounting import Prices
from lm_eval_tandem.cascade.prompts import Question
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.engines import Prompt, Sampling
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.engines.rating import Candidate, Score
from lm_eval_tandem.ensembles import responses
from lm_eval_tandem.ensembles.ensemble import Aggregation, Ensemble, Selector
from lm_eval_tandem.ensembles.responses import BestOf, One, Vote, extractor
from lm_eval_tandem.ensembles.run import SCORER, Member
from lm_eval_tandem.ensembles.scorers import LogprobScorer
from lm_eval_tandem.ensembles.segments import REPEATED, Segments
from lm_eval_tandem.errors import CallError
from lm_eval_tandem.ledger import Record

QUESTION, LENGTH = "How many coins?", 24
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, HFEngine]]:
    base = tmp_path_factory.mktemp("ensemble")
    made = (("qwen3", 3, None), ("llama", 1, tiny.other_tokenizer()), ("llama", 2, None))
    loaded = {
        name: HFEngine({"pretrained": str(tiny.save(base / name, *given)), "dtype": "float32", "device": "cpu"})
        for name, given in zip(NAMES, made, strict=True)
    }
    yield loaded
    for engine in loaded.values():
        engine.close()


def members(engines: dict[str, HFEngine]) -> tuple[Member, ...]:
    return tuple(Member(name, engine, f"lab/{name}") for name, engine in engines.items())


def answer(
    engines: dict[str, HFEngine],
    aggregation: Aggregation,
    selector: Selector = Selector(),  # noqa: B008  it is frozen
    doc_id: int = 1,
    question: str = QUESTION,
    **sampling: Any,
) -> tuple[str, Record]:
    ensemble = Ensemble(members(engines), selector, aggregation, "ensemble:test")
    task = Task(Question(question), replace(Sampling(LENGTH, seed=42), **sampling), "t", doc_id)
    return asyncio.run(ensemble.answer(task))


def written(engine: HFEngine, text: str, tokens: int, stop: Sequence[str] = ()) -> tuple[str, int]:
    """What a model goes on with, and in how many tokens."""
    completion = asyncio.run(engine.generate(Prompt(text), Sampling(tokens, tuple(stop))))
    return engine.decode(completion.token_ids), completion.new_tokens


class Longest:
    """A scorer for tests: the number of letters e, of the text alone."""

    name, parameters, identity = "letters", 1000, {"scorer": "letters"}

    async def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        return [Score(float(one.text.count("e")), len(one.begun + one.text), 0.0) for one in candidates]

    def close(self) -> None:
        """Nothing is open."""


class Unsure(Longest):
    """A scorer of unknown size, such as a server, that finds nothing to rate."""

    parameters = None  # type: ignore[assignment]

    async def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        return [Score(float("-inf"), 0, 0.0, 0.25) for _ in candidates]


def by_hand(engines: dict[str, HFEngine], turns: str, tokens: int) -> tuple[str, list[str]]:
    """Segments in their order, each from the text so far."""
    text, writers, left = "", list[str](), LENGTH
    while left > 0:
        names = [NAMES[len(writers) % len(NAMES)]] if turns == "loop" else list(NAMES)
        proposed = {name: written(engines[name], QUESTION + text, min(tokens, left)) for name in names}
        best = max(proposed, key=lambda name: proposed[name][0].count("e"))
        text, left = text + proposed[best][0], left - proposed[best][1]
        writers.append(best)
    return text, writers


@pytest.mark.parametrize("turns", ["loop", "reward_based"])
def test_segments_are_written_as_by_hand(engines: dict[str, HFEngine], turns: Any) -> None:
    text, record = answer(engines, Segments(turns, 5, scorer=Longest()))
    expected, writers = by_hand(engines, turns, 5)
    assert (text, [segment.writer for segment in record.segments]) == (expected, writers)
    assert sum(segment.characters for segment in record.segments) == len(text)
    assert len(set(writers)) > 1
    assert (record.reason, record.finish_reason) == ("length", "length")
    in_answer = sum(segment.tokens for segment in record.segments)
    assert in_answer == LENGTH
    proposals = {"loop": 1, "reward_based": len(NAMES)}[turns]
    assert record.length == proposals * LENGTH
    assert record.refused_tokens == record.length - LENGTH


def test_every_token_that_was_read_or_written_is_on_the_bill(engines: dict[str, HFEngine]) -> None:
    """Each model reads what the others wrote since its last segment, which Eq. 12 counts, and its own prompt."""
    _, record = answer(engines, Segments("loop", 5))
    tokens = [segment.tokens for segment in record.segments]
    before_last = {name: max(i for i, s in enumerate(record.segments) if s.writer == name) for name in NAMES}
    for name, engine in engines.items():
        spent, size = record.spent[name], engine.parameters
        assert spent.new == sum(tokens[i] for i, s in enumerate(record.segments) if s.writer == name)
        others = [tokens[i] for i, s in enumerate(record.segments[: before_last[name]]) if s.writer != name]
        assert spent.read == sum(others)
        assert spent.tflops == pytest.approx(2e-12 * size * (spent.new + spent.read))
        assert spent.bill == pytest.approx(2e-12 * size * (spent.new + spent.prefill))
        assert spent.prefill > len(engine.encode(QUESTION))
    assert record.tflops == pytest.approx(sum(spent.tflops or 0 for spent in record.spent.values()))


def test_drawn_writers_depend_on_the_seed_and_the_question_alone(engines: dict[str, HFEngine]) -> None:
    def writers(doc_id: int, seed: int = 42) -> list[str]:
        _, record = answer(engines, Segments("random", 3), doc_id=doc_id, seed=seed)
        return [segment.writer for segment in record.segments]

    first = writers(1)
    assert first == writers(1)
    assert first != writers(2) != writers(2, seed=43)
    assert set(first) | set(writers(2)) == set(NAMES)


def test_a_segment_ends_with_its_text_and_an_answer_with_its_stop_string(engines: dict[str, HFEngine]) -> None:
    whole, record = answer(engines, Segments("loop", 12, end="e"))
    assert len(record.segments) > LENGTH // 12, "no segment ended before its tokens did"
    end = 0
    for segment in record.segments[:-1]:
        end += segment.characters
        assert "e" in whole[end - segment.characters : end] or segment.tokens == 12
    stop = whole[len(whole) // 2 :][:3]
    text, record = answer(engines, Segments("loop", 12, end="e"), stop=(stop,))
    assert (text, record.reason, record.finish_reason) == (whole[: whole.index(stop)], "ended", "stop")


def test_an_answer_ends_that_nobody_ends(engines: dict[str, HFEngine], tmp_path: Path) -> None:
    short = answer(engines, Segments("loop", 5, max_rounds=2))[1]
    assert (len(short.segments), short.reason, short.finish_reason) == (2, "max_rounds", "length")
    below = answer(engines, Segments("reward_based", 5, scorer=Longest(), score_threshold=100.0))
    assert (below[0], below[1].reason, below[1].length) == ("", "below score_threshold", 3 * 5)
    script = HFEngine({"pretrained": str(tiny.save_script(tmp_path, "coins " * 30)), "device": "cpu"})
    text, record = answer({"s": script}, Segments("loop", 1, max_rounds=50), question="x", max_tokens=40)
    script.close()
    assert record.reason == "repeats itself"
    assert text == "coins" + " coins" * REPEATED, "the first word is written in letters, the others in one token"


def test_the_majority_s_first_response_is_taken_and_a_tie_goes_to_the_first_model(engines: dict[str, HFEngine]) -> None:
    responses = {name: written(engine, QUESTION, LENGTH)[0] for name, engine in engines.items()}
    assert len(set(responses.values())) == len(NAMES)

    def taken(votes: dict[str, str | None]) -> tuple[str, str]:
        text, record = answer(engines, Vote(lambda response: votes[response]))
        (segment,) = record.segments
        assert text == responses[segment.writer]
        assert record.length == 3 * record.spent["a"].new == 3 * LENGTH
        return segment.writer, record.reason

    def ballots(*answers: str | None) -> dict[str, str | None]:
        return dict(zip(responses.values(), answers, strict=True))

    assert taken(ballots("1", "2", "2")) == ("b", "2 of 3 votes")
    assert taken(ballots("1", "2", "3")) == ("a", "1 of 3 votes")
    assert taken(ballots(None, None, "3")) == ("c", "1 of 3 votes")
    assert taken(ballots(None, None, None)) == ("a", "0 of 3 votes")


def test_answers_that_mean_the_same_are_one_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    read = extractor("answer")
    assert read(r"So it is \boxed{\dfrac{1}{2}}.") == read(r"The answer is $\frac12$.")
    assert read("So she has 18 eggs.") == read("#### 18")
    assert read("I do not know") is None
    for_ever = extractor(r"(a|b|ab)*(?=c)c")
    monkeypatch.setattr(responses, "EXTRACT_SECONDS", 0.1)
    with pytest.raises(CallError, match="takes longer than"):
        for_ever("ab" * 30 + "d c")
    last = extractor(r"=\s*(\d+)")
    assert (last("1 = 2, so 2 = 30."), last("none")) == ("30", None)


def test_the_response_with_the_highest_score_is_taken(engines: dict[str, HFEngine]) -> None:
    responses = {name: written(engine, QUESTION, LENGTH)[0] for name, engine in engines.items()}
    nothing = answer(engines, BestOf(Unsure()))[1]
    assert nothing.segments[0].score is None, "minus infinity is no JSON"
    assert nothing.response_scores == dict.fromkeys(NAMES)
    assert (nothing.spent[SCORER].tflops, nothing.spent[SCORER].dollars) == (0.0, 0.75), "billed in dollars alone"
    assert nothing.tflops is not None
    text, record = answer(engines, BestOf(Longest()))
    best = max(responses, key=lambda name: responses[name].count("e"))
    assert (text, record.segments[0].writer) == (responses[best], best)
    assert record.segments[0].score == responses[best].count("e")
    assert record.response_scores == {name: response.count("e") for name, response in responses.items()}
    read = sum(map(len, responses.values()))
    assert record.spent[SCORER].judged == read
    assert record.spent[SCORER].bill == pytest.approx(2e-12 * 1000 * read)


def test_a_member_that_scores_reads_what_it_has_not_read(engines: dict[str, HFEngine]) -> None:
    """By its own probabilities each model's greedy answer is likelier than those of the others."""
    for member in members(engines):
        scorer = LogprobScorer(member.name, member.engine)
        _, record = answer(engines, BestOf(scorer, member))
        assert record.segments[0].writer == member.name
        own = len(member.engine.encode(QUESTION))
        assert own < record.spent[member.name].judged < 4 * (own + 4 * LENGTH)
        assert sum(spent.judged > 0 for spent in record.spent.values()) == 1


def test_some_models_are_selected_and_the_others_cost_nothing(engines: dict[str, HFEngine]) -> None:
    drawn = [answer(engines, Segments("loop", 5), Selector("random", 2), doc_id=i)[1] for i in range(6)]
    assert len({tuple(record.selected) for record in drawn}) > 1
    for record in drawn:
        assert len(record.selected) == 2
        assert {segment.writer for segment in record.segments} == set(record.selected)
        assert [record.spent[name].bill == 0 for name in NAMES] == [name not in record.selected for name in NAMES]
    assessed = answer(engines, One(), Selector("self_assessment"))[1]
    assert len(assessed.selected) == 1
    assert all(spent.judged > 0 for spent in assessed.spent.values())


def test_dollars_are_those_of_all_models(engines: dict[str, HFEngine]) -> None:
    price = Prices(1.0, 1.0, 10.0)
    priced = tuple(replace(member, prices=price if member.name != "c" else None) for member in members(engines))
    task = Task(Question(QUESTION), Sampling(LENGTH), "t", 1)
    _, record = asyncio.run(Ensemble(priced, Selector(), Vote(len), "x").answer(task))  # type: ignore[arg-type]
    expected = [price.dollars(len(engines[name].encode(QUESTION)), 0, LENGTH) for name in ("a", "b")]
    assert record.dollars == pytest.approx(sum(expected))
    assert record.spent["c"].dollars is None
