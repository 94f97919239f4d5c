"""The cascade follows the paper's algorithm, with real engines and a judge whose scores are given."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import GenerationConfig

import tiny
from lm_eval_tandem.accounting import Tokens, tflops
from lm_eval_tandem.cascade.algorithm import Cascade
from lm_eval_tandem.cascade.answer import PartialAnswer, join
from lm_eval_tandem.cascade.policies import MENTOR_STAGE, Policy
from lm_eval_tandem.cascade.prompts import GPRA, OUTLINE, Prompts, Question, Wording
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.engines import Prompt, Sampling
from lm_eval_tandem.engines.cached import CachedEngine
from lm_eval_tandem.engines.drafts import accepted_draft_tokens
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.grading.code.extraction import extract
from lm_eval_tandem.judge.features import FEATURE_NAMES, features
from lm_eval_tandem.judge.probe import Probe
from lm_eval_tandem.ledger import MENTOR_FINISHED, Record, Segment
from lm_eval_tandem.store import Store

EFFORTS = (4, 9, 15)
WORDING = Wording(request=" Insights:", open=" Insights:", close=" Steps:", deepen=" Deeper:")
QUESTION = Question("Mira starts with 40 coins: 1) buys a lantern, 2) sells a harp. How many coins does Mira have?")


@dataclass
class GivenJudge:
    """A judge with a given score per stage, which keeps the features that it scored."""

    scores: tuple[float, ...]
    thresholds: tuple[float, ...] = (0.5, 0.5, 0.5, 0.5)
    scored: list[NDArray[np.float64]] = field(default_factory=list)
    probe: Probe | None = None
    reads_prompt: bool = True

    def inputs(self, features: NDArray[np.float64], answer: PartialAnswer | None) -> NDArray[np.float64]:
        assert (answer is None) == (self.probe is None)
        assert len(features) == (len(FEATURE_NAMES) if self.reads_prompt else 1)
        return features

    def score(self, features: NDArray[np.float64]) -> float:
        self.scored.append(features)
        return self.scores[int(features[-1])]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HFEngine, HFEngine]]:
    base = tmp_path_factory.mktemp("cascade")
    pair = [
        HFEngine({"pretrained": str(tiny.save(base / role, kind, seed)), "dtype": "float32", "device": "cpu"})
        for role, kind, seed in (("mentor", "qwen3", 3), ("intern", "llama", 1))
    ]
    yield pair[0], pair[1]
    for engine in pair:
        engine.close()


@pytest.fixture
def cascade(engines: tuple[HFEngine, HFEngine]) -> Cascade:
    return Cascade(*engines, Prompts(WORDING), Policy("cascade"), EFFORTS, GivenJudge((0.0,) * 4))


def answer(cascade: Cascade, sampling: Sampling | None = None, question: Question = QUESTION) -> tuple[str, Record]:
    return asyncio.run(cascade.answer(Task(question, sampling or Sampling(12), "t", 1)))


def alone(engine: HFEngine, text: str, n: int) -> tuple[int, ...]:
    return asyncio.run(engine.generate(Prompt(text), Sampling(n))).token_ids


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_mentor_stops_at_the_first_stage_that_passes(cascade: Cascade, stage: int) -> None:
    scores = tuple(0.9 if t >= stage else 0.1 for t in range(4))
    text, record = answer(replace(cascade, judge=GivenJudge(scores)))
    assert (record.stage, record.reason) == (stage, "sufficient")
    assert record.tokens.mentor_new == (0, *EFFORTS)[stage], "the mentor wrote more than the stage needed"
    assert [judgement.score for judgement in record.stages] == list(scores[: stage + 1])
    assert text == answer(replace(cascade, policy=Policy("stage", stage)))[0]


def test_where_no_stage_passes_the_best_one_answers_and_all_tokens_are_billed(cascade: Cascade) -> None:
    text, record = answer(replace(cascade, judge=GivenJudge((0.1, 0.4, 0.4, 0.2))))
    assert (record.stage, record.reason) == (1, "best of all")
    assert record.tokens.mentor_new == EFFORTS[-1]
    assert text == answer(replace(cascade, policy=Policy("stage", 1)))[0]


def test_a_score_equal_to_its_threshold_does_not_pass(cascade: Cascade) -> None:
    assert answer(replace(cascade, judge=GivenJudge((0.5, 0.6, 0.0, 0.0))))[1].stage == 1


def test_the_insights_are_one_text_cut_at_the_efforts(cascade: Cascade, engines: tuple[HFEngine, HFEngine]) -> None:
    mentor, intern = engines
    ids = alone(mentor, QUESTION.text + " Insights:", EFFORTS[-1])
    for stage, effort in enumerate(EFFORTS, 1):
        prompt = QUESTION.text + " Insights:" + mentor.decode(ids[:effort]) + " Steps:"
        expected = asyncio.run(intern.generate(Prompt(prompt), Sampling(12))).text
        assert answer(replace(cascade, policy=Policy("stage", stage)))[0] == expected


def test_the_judge_reads_exactly_the_prompt_that_is_answered_from(
    cascade: Cascade, engines: tuple[HFEngine, HFEngine]
) -> None:
    judge = GivenJudge((0.1, 0.1, 0.9, 0.9))
    answer(replace(cascade, judge=judge))
    mentor, intern = engines
    ids = alone(mentor, QUESTION.text + " Insights:", EFFORTS[1])
    prompt = QUESTION.text + " Insights:" + mentor.decode(ids) + " Steps:"
    stats = asyncio.run(intern.score(Prompt(prompt)))
    np.testing.assert_allclose(judge.scored[2], features(stats, 2), rtol=1e-3, atol=1e-3)


def test_a_mentor_that_ends_by_itself_is_not_called_or_judged_again(cascade: Cascade, tmp_path: Path) -> None:
    """The mentor's third token is an end token of its model, by its generation settings."""
    mentor = cascade.mentor
    assert isinstance(mentor, HFEngine)
    written = alone(mentor, QUESTION.text + " Insights:", 3)
    length = written.index(written[2]) + 1
    shutil.copytree(mentor.name, tmp_path / "ending")
    settings = GenerationConfig.from_pretrained(mentor.name)
    settings.eos_token_id = [settings.eos_token_id, written[2]]
    settings.save_pretrained(tmp_path / "ending")
    ending = HFEngine({"pretrained": str(tmp_path / "ending"), "dtype": "float32", "device": "cpu"})
    _, record = answer(replace(cascade, mentor=ending))
    assert record.mentor_finish_reason == "stop"
    assert record.tokens.mentor_new == length
    assert [judgement.stage for judgement in record.stages] == [0, 1]
    _, fixed = answer(replace(cascade, mentor=ending, policy=Policy("stage", 3)))
    assert fixed.tokens.mentor_new == length
    assert fixed.mentor_ended_before
    ending.close()


def test_costs_are_those_of_equation_12(cascade: Cascade) -> None:
    assert cascade.mentor is not None
    assert cascade.intern is not None
    large, small = cascade.mentor.parameters, cascade.intern.parameters
    _, record = answer(replace(cascade, policy=Policy("stage", 2)))
    spent = record.tokens
    assert record.tflops == pytest.approx(2e-12 * (large * spent.mentor_new + small * spent.length))
    _, mentor = answer(replace(cascade, policy=Policy("mentor")))
    assert mentor.tflops == pytest.approx(2e-12 * large * mentor.tokens.mentor_new)
    assert mentor.stage == -1
    _, intern = answer(replace(cascade, policy=Policy("intern")))
    assert intern.tflops == tflops(Tokens(intern_new=intern.tokens.intern_new), 0, small)


def test_the_bill_counts_every_prompt_token_once(cascade: Cascade) -> None:
    """Judge passes share their prefix, and the answer starts from the last of them."""
    _, record = answer(replace(cascade, judge=GivenJudge((0.1, 0.1, 0.1, 0.9))))
    assert cascade.intern is not None
    longest = record.stages[-1].prompt_tokens
    cues = 3 * len(cascade.intern.encode(" Steps:"))
    assert longest <= record.tokens.judge_prefill <= longest + cues
    assert record.tokens.intern_prefill == 0


def test_staged_insights_deepen_the_earlier_passes(cascade: Cascade, engines: tuple[HFEngine, HFEngine]) -> None:
    mentor = engines[0]
    staged = replace(cascade, prompts=Prompts(WORDING, "staged"), policy=Policy("stage", 2))
    _, record = answer(staged)
    first = alone(mentor, QUESTION.text + " Insights:", EFFORTS[0])
    again = QUESTION.text + " Insights:" + mentor.decode(first) + " Deeper:"
    second = alone(mentor, again, EFFORTS[1] - EFFORTS[0])
    assert record.tokens.mentor_new == len(first) + len(second)


def test_continuation_continues_the_mentors_text(cascade: Cascade, engines: tuple[HFEngine, HFEngine]) -> None:
    mentor, intern = engines
    prompts = Prompts(WORDING, guidance="continuation")
    text, _ = answer(replace(cascade, prompts=prompts, policy=Policy("stage", 1)))
    insight = mentor.decode(alone(mentor, QUESTION.text + " Insights:", EFFORTS[0]))
    expected = asyncio.run(intern.generate(Prompt(QUESTION.text + insight), Sampling(12))).text
    assert text == expected


def test_conversations_are_rendered_by_each_role(engines: tuple[HFEngine, HFEngine]) -> None:
    messages = (("system", "Be brief."), ("user", "One?"), ("assistant", "Two."), ("user", "Three?"))
    prompts = Prompts(GPRA)
    question = Question("", messages)
    for engine in engines:
        requested = prompts.mentor(engine, question)
        assert requested.startswith("Be brief.")
        assert requested.endswith(GPRA.request)
        first = prompts.intern(engine, question, "[Goal] four")
        longer = prompts.intern(engine, question, "[Goal] four [Planning] count")
        assert longer.startswith(first.split("[Goal] four")[0] + "[Goal] four")
        assert prompts.intern(engine, question, "") == engine.render(messages)


def test_sampled_answers_depend_on_seed_and_repeat_alone(cascade: Cascade) -> None:
    fixed = replace(cascade, policy=Policy("stage", 1))
    sampling = Sampling(12, temperature=1.3, top_k=0, seed=1)

    async def both(seed: int) -> list[str]:
        tasks = [Task(QUESTION, replace(sampling, seed=seed), "t", 1, repeat) for repeat in range(3)]
        return [text for text, _ in await asyncio.gather(*map(fixed.answer, tasks))]

    one, again, other = asyncio.run(both(1)), asyncio.run(both(1)), asyncio.run(both(2))
    assert one == again != other
    assert len(set(one)) == 3


def test_budget_forcing_cuts_the_mentors_thinking_and_has_it_answer(cascade: Cascade) -> None:
    mentor = cascade.mentor
    assert mentor is not None
    prompts = Prompts(replace(WORDING, force=" Answer:"))
    policy = Policy.parse("budget_forcing:5", 3)
    text, record = answer(replace(cascade, prompts=prompts, policy=policy, intern=None))
    thought = mentor.decode(alone(mentor, QUESTION.text, 5)) + " Answer:"
    assert text == thought + mentor.decode(alone(mentor, QUESTION.text + thought, 7))
    assert (record.stage, record.reason, record.tokens.mentor_new) == (-1, "forced", 12)
    assert record.tflops == pytest.approx(2e-12 * mentor.parameters * 12)
    whole, unforced = answer(replace(cascade, policy=Policy.parse("budget_forcing:12", 3)))
    assert whole == answer(replace(cascade, policy=Policy("mentor")))[0]
    assert unforced.reason == "alone"


@pytest.mark.parametrize(
    ("written", "closing"),
    [
        ("Why? Well", ""),
        ("Why?<think>Well", "\n</think>"),
        ("Why?<think>Well</think> So", ""),
        ("Why?\n```python\nx = 1", "\n```"),
        ("Why?\n```python\nx = 1\n```\nSo", ""),
        ("Why?<think>\n```python\nx = 1", "\n```\n</think>"),
    ],
)
def test_budget_forcing_closes_what_is_open(written: str, closing: str) -> None:
    assert Prompts(replace(WORDING, force="\n\nAnswer:")).end_of_thinking(written) == f"{closing}\n\nAnswer:"


def test_the_code_of_an_answer_that_was_forced_is_found() -> None:
    cut = "```python\ndef f(x):\n    y = x"
    whole = cut + Prompts(WORDING).end_of_thinking(cut) + "```python\ndef f(x):\n    return x\n```"
    assert extract(whole, ("f",)) == ("def f(x):\n    return x\n",)


@pytest.mark.parametrize(("score", "stage"), [(0.9, 0), (0.1, 3)])
def test_llm_cascade_decides_once(cascade: Cascade, score: float, stage: int) -> None:
    text, record = answer(replace(cascade, policy=Policy("llm_cascade"), judge=GivenJudge((score, 0.9, 0.9, 0.9))))
    assert text == answer(replace(cascade, policy=Policy("stage", stage)))[0]
    assert record.stage == stage
    assert len(record.stages) == 1
    assert record.tokens.mentor_new == (0, *EFFORTS)[stage]


def test_escalate_ends_with_the_mentors_own_answer(cascade: Cascade) -> None:
    escalate = replace(cascade, policy=Policy("escalate"))
    text, record = answer(escalate)
    alone_text, mentor = answer(replace(cascade, policy=Policy("mentor")))
    assert text == alone_text
    assert (record.stage, record.reason) == (-1, "escalated")
    assert record.tokens.mentor_new == EFFORTS[-1] + mentor.tokens.mentor_new
    assert cascade.intern is not None
    read = 2e-12 * EFFORTS[-1] * (cascade.intern.parameters + cascade.mentor.parameters)  # type: ignore[union-attr]
    assert record.tflops == pytest.approx(mentor.tflops + read)
    early, sufficient = answer(replace(escalate, judge=GivenJudge((0.1, 0.9, 0.1, 0.1))))
    assert sufficient.stage == 1
    assert early == answer(replace(cascade, policy=Policy("stage", 1)))[0]


@pytest.mark.parametrize("name", ["casade", "stages:1", ""])
def test_an_unknown_policy_is_refused_with_the_list_of_known_ones(name: str) -> None:
    with pytest.raises(ArgumentError, match=r"use cascade, intern, mentor, stage:N with N from 0 to 3, "):
        Policy.parse(name, 3)


def test_a_wording_file_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "words.json"
    for text in ("{", "[]", '{"request": "a"}', '{"request": "a", "open": "b", "close": "c", "more": "d"}'):
        file.write_text(text)
        with pytest.raises(ArgumentError, match="prompts="):
            Wording.read(file)
    file.write_text('{"request": "a", "open": "b", "close": "c"}')
    assert Wording.read(file) == Wording("a", "b", "c")
    file.write_text('{"request": "a", "open": "b", "close": "c", "whole_lines": true}')
    assert Wording.read(file) == Wording("a", "b", "c", whole_lines=True)
    file.write_text('{"request": "a", "open": "b", "close": "c", "whole_lines": "yes"}')
    with pytest.raises(ArgumentError, match=r"whole_lines of prompts=.* has to be true or false, not 'yes'"):
        Wording.read(file)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("40 - 6", "40 - 6"),
        ("40 - 6 = 34\n", "40 - 6 = 34\n"),
        ("40 - 6 = 34\n34 +", "40 - 6 = 34\n"),
        ("40 - 6 = 34\n34 + 2 = 36 and an end", "40 - 6 = 34\n34 + 2 = 36"),
    ],
    ids=["no whole line", "just a line", "a line and a half", "finished"],
)
def test_of_whole_lines_the_one_that_was_cut_off_is_not_read(
    engines: tuple[HFEngine, HFEngine], tmp_path: Path, written: str, read: str
) -> None:
    """The mentor goes on from all that it has written; the intern reads it up to the last whole line."""
    words = replace(WORDING, whole_lines=True)
    folder = tiny.save_script(tmp_path, "40 - 6 = 34\n34 + 2 = 36", QUESTION.text + words.request)
    mentor = HFEngine({"pretrained": str(folder), "dtype": "float32", "device": "cpu"})
    efforts = (len(mentor.encode(written)),)
    fixed = Cascade(mentor, engines[1], Prompts(words), Policy("stage", stage=1), efforts, record_insights=True)
    _, record = answer(fixed)
    mentor.close()
    assert record.stages[0].insight == read
    expected = engines[1].encode(QUESTION.text + words.open + read + words.close)
    assert record.stages[0].prompt_tokens == len(expected)


def test_an_accepted_probe_costs_nothing_and_reads_the_same(cascade: Cascade) -> None:
    plain = answer(replace(cascade, judge=GivenJudge((0.9,) * 4)))
    probed = answer(replace(cascade, judge=GivenJudge((0.9,) * 4, probe=Probe(5))))
    assert probed[0] == plain[0]
    assert probed[1].tokens == plain[1].tokens
    assert (probed[1].stage, probed[1].finish_reason) == (plain[1].stage, plain[1].finish_reason)
    assert probed[1].stages[0].probe_tokens == 5
    assert plain[1].stages[0].probe_tokens == 0


def test_of_a_refused_probe_only_what_differs_is_generated_again(cascade: Cascade) -> None:
    plain = answer(replace(cascade, judge=GivenJudge((0.1, 0.9, 0.9, 0.9))))
    probed = answer(replace(cascade, judge=GivenJudge((0.1, 0.9, 0.9, 0.9), probe=Probe(5))))
    assert probed[0] == plain[0]
    assert probed[1].stage == plain[1].stage == 1
    draft, whole = (answers(cascade, stage)[: (5, None)[stage]] for stage in (0, 1))
    refused = 5 - accepted_draft_tokens(draft, whole[:5])
    assert probed[1].refused_tokens == refused > 0
    assert plain[1].refused_tokens == 0
    assert probed[1].tokens.intern_new == plain[1].tokens.intern_new + refused


def answers(cascade: Cascade, stage: int) -> tuple[int, ...]:
    """The tokens of the answer at a stage."""
    fixed = replace(cascade, policy=Policy("stage", stage=stage), judge=None, record_features=True)
    measured = answer(fixed)[1].stages[-1]
    assert measured.answer_ids is not None
    return tuple(measured.answer_ids)


def test_a_judge_of_the_probe_alone_needs_no_pass_over_the_prompt(cascade: Cascade) -> None:
    given = GivenJudge((0.1, 0.1, 0.9, 0.9), probe=Probe(4))
    reads, alone = (answer(replace(cascade, judge=replace(given, reads_prompt=reads))) for reads in (True, False))
    assert alone[0] == reads[0]
    assert alone[1].tflops == reads[1].tflops
    assert alone[1].tokens.judge_prefill == 0 < reads[1].tokens.judge_prefill
    assert alone[1].refused_tokens == reads[1].refused_tokens > 0


def test_a_probe_between_two_judgements_makes_no_token_be_read_again(cascade: Cascade) -> None:
    """Each pass reuses the last one's tokens, but for the last shared one, which predicts the first new one."""
    assert cascade.intern is not None
    before = (cascade.intern.work.prefill_tokens, cascade.intern.work.recomputed_tokens)
    _, record = answer(replace(cascade, judge=GivenJudge((0.1, 0.1, 0.1, 0.9), probe=Probe(4))))
    read, again = (now - then for now, then in zip(vars(cascade.intern.work).values(), before, strict=False))
    calls = 2 * len(record.stages) + 1
    billed = record.tokens.judge_prefill + record.tokens.intern_prefill
    assert again <= calls
    assert read <= billed + again + 1


def test_the_best_refused_probe_is_continued(cascade: Cascade) -> None:
    scores = (0.1, 0.4, 0.3, 0.2)
    plain = answer(replace(cascade, judge=GivenJudge(scores)))
    probed = answer(replace(cascade, judge=GivenJudge(scores, probe=Probe(4))))
    assert probed[0] == plain[0]
    assert probed[1].reason == plain[1].reason == "best of all"
    assert probed[1].tokens.intern_new == plain[1].tokens.intern_new + probed[1].refused_tokens
    assert 0 < probed[1].refused_tokens <= 3 * 4


def test_a_cascade_over_stored_stages_computes_nothing(cascade: Cascade, tmp_path: Path) -> None:
    """Stages that were answered with their statistics hold every beginning that a judge of first tokens asks for."""
    store = Store(tmp_path / "store.sqlite")
    assert cascade.mentor is not None
    assert cascade.intern is not None
    stored = replace(cascade, mentor=CachedEngine(cascade.mentor, store), intern=CachedEngine(cascade.intern, store))
    recorded = replace(stored, judge=None, record_features=True, record_prompts=False)
    fixed = [answer(replace(recorded, policy=Policy("stage", stage=stage)))[0] for stage in range(4)]
    engines = (cascade.mentor, cascade.intern)
    for stage in range(4):
        scores = tuple(0.9 if other == stage else 0.1 for other in range(4))
        judge = GivenJudge(scores, probe=Probe(5, max_entropy=6.0), reads_prompt=False)
        plain = answer(replace(cascade, judge=judge))
        before = [engine.work.decode_tokens for engine in engines]
        text, record = answer(replace(stored, judge=judge))
        assert [engine.work.decode_tokens for engine in engines] == before
        assert text == plain[0] == fixed[stage]
        assert (record.stage, record.tokens) == (stage, plain[1].tokens)
    store.close()


def test_a_recorded_fixed_stage_holds_what_a_probe_would_have_measured(cascade: Cascade) -> None:
    fixed = replace(cascade, policy=Policy("stage", stage=2), judge=None)
    plain, recorded = answer(fixed), answer(replace(fixed, record_features=True))
    measured = recorded[1].stages[0]
    assert recorded[0] == plain[0]
    assert plain[1].stages == []
    assert measured.answer_entropy is not None
    assert measured.answer_logprob is not None
    assert measured.parts is not None
    assert len(measured.answer_entropy) == len(measured.answer_logprob) == recorded[1].tokens.intern_new
    assert min(measured.answer_entropy) >= 0 >= max(measured.answer_logprob)
    assert len(measured.parts) == 36


LENGTH = 20
"""Tokens of a whole answer where the mentor begins it (`guidance=handoff`)."""


@pytest.fixture
def handoff(cascade: Cascade) -> Cascade:
    return replace(cascade, prompts=Prompts(guidance="handoff"))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_answer_is_the_mentors_beginning_and_what_the_intern_makes_of_it(
    handoff: Cascade, engines: tuple[HFEngine, HFEngine], stage: int
) -> None:
    mentor, intern = engines
    effort = EFFORTS[stage - 1]
    begun = mentor.decode(asyncio.run(mentor.generate(Prompt(QUESTION.text), Sampling(effort))).token_ids)
    rest = asyncio.run(intern.generate(Prompt(QUESTION.text + begun), Sampling(LENGTH - effort)))
    text, record = answer(replace(handoff, policy=Policy("stage", stage)), Sampling(LENGTH))
    assert text == begun + rest.text
    assert (record.tokens.mentor_new, record.tokens.intern_new) == (effort, rest.new_tokens)
    assert record.segments == [
        Segment("mentor", effort, len(begun)),
        Segment("intern", rest.new_tokens, len(rest.text)),
    ]
    scores = tuple(0.9 if t >= stage else 0.1 for t in range(4))
    assert answer(replace(handoff, judge=GivenJudge(scores)), Sampling(LENGTH))[0] == text


def test_an_earlier_stage_that_answers_in_the_end_keeps_its_own_beginning(handoff: Cascade) -> None:
    judged = replace(handoff, judge=GivenJudge((0.1, 0.4, 0.2, 0.2)))
    text, record = answer(judged, Sampling(LENGTH))
    assert (record.stage, record.tokens.mentor_new) == (1, EFFORTS[-1])
    assert record.segments[0].tokens == EFFORTS[0], "the intern went on after the first stage"
    assert text == answer(replace(handoff, policy=Policy("stage", 1)), Sampling(LENGTH))[0]


@pytest.mark.parametrize("policy", [Policy("stage", 3), Policy("cascade"), Policy("escalate")])
def test_a_mentor_that_comes_to_its_end_has_answered(handoff: Cascade, policy: Policy) -> None:
    """Eight tokens make a whole answer here, which the second stage reaches."""
    alone, _ = answer(replace(handoff, policy=Policy("mentor")), Sampling(8))
    text, record = answer(replace(handoff, policy=policy), Sampling(8))
    assert text == alone
    assert (record.reason, record.finish_reason) == (MENTOR_FINISHED, "length")
    assert record.tokens.mentor_new == 8
    assert handoff.mentor is not None
    assert handoff.intern is not None
    read = 0 if policy.name == "stage" else EFFORTS[0]
    assert record.tflops == tflops(record.tokens, handoff.mentor.parameters, handoff.intern.parameters, read=read)


def test_a_mentor_that_takes_over_goes_on_with_what_it_has_begun(handoff: Cascade) -> None:
    alone, of_mentor = answer(replace(handoff, policy=Policy("mentor")), Sampling(LENGTH))
    text, record = answer(replace(handoff, policy=Policy("escalate")), Sampling(LENGTH))
    assert (text, record.stage, record.reason) == (alone, MENTOR_STAGE, "escalated")
    assert record.tokens.mentor_new == of_mentor.tokens.mentor_new, "tokens were generated twice"


def test_stages_are_parts_of_an_answer_that_is_stored(handoff: Cascade, tmp_path: Path) -> None:
    assert handoff.mentor is not None
    store = Store(tmp_path / "store.sqlite")
    stored = replace(handoff, mentor=CachedEngine(handoff.mentor, store))
    answer(replace(stored, policy=Policy("mentor")), Sampling(LENGTH))
    computed = handoff.mentor.work.decode_tokens
    answer(stored, Sampling(LENGTH))
    assert handoff.mentor.work.decode_tokens == computed
    store.close()


def under(cascade: Cascade, policy: Policy) -> Cascade:
    """The cascade under a policy that may have prompts and an effort of its own."""
    prompts, efforts = policy.prompts(cascade.prompts), policy.efforts(cascade.efforts)
    return replace(cascade, policy=policy, prompts=prompts, efforts=efforts)


@pytest.mark.parametrize("tokens", [1, 7, LENGTH])
def test_a_handoff_is_one_stage_of_the_mentors_answer(cascade: Cascade, handoff: Cascade, tokens: int) -> None:
    text, record = answer(under(cascade, Policy.parse(f"handoff:{tokens}", 3)), Sampling(LENGTH))
    one_stage = replace(handoff, efforts=(tokens,), policy=Policy("stage", 1))
    expected, of_stage = answer(one_stage, Sampling(LENGTH))
    assert (text, record.policy, record.tokens) == (expected, f"handoff:{tokens}", of_stage.tokens)
    assert (record.stage, record.reason, record.tflops) == (1, of_stage.reason, of_stage.tflops)


def test_an_outline_begins_the_interns_thought(cascade: Cascade, engines: tuple[HFEngine, HFEngine]) -> None:
    mentor, intern = engines
    outline = asyncio.run(mentor.generate(Prompt(QUESTION.text + OUTLINE.request), Sampling(6)))
    thought = f"{QUESTION.text}<think>\n{OUTLINE.open}{mentor.decode(outline.token_ids)}{OUTLINE.close}"
    expected = asyncio.run(intern.generate(Prompt(thought), Sampling(12)))
    text, record = answer(under(cascade, Policy.parse("outline:6", 3)))
    assert text == expected.text
    assert (record.policy, record.stage) == ("outline:6", 1)
    assert (record.tokens.mentor_new, record.tokens.intern_new) == (6, expected.new_tokens)
    assert record.tokens.intern_prefill == len(intern.encode(thought))
    thinking = replace(QUESTION, text=QUESTION.text + "<think>\n")
    begun = Prompts(OUTLINE, guidance="thought").intern(intern, thinking, "First.")
    assert begun == thinking.text + OUTLINE.open + "First." + OUTLINE.close, (
        "a thought that is open is not opened again"
    )


def test_a_stop_string_of_both_writers_ends_the_answer() -> None:
    assert join("Six.\n", "\nNext question", ("\n\n", "Q:")) == "Six."
    assert join("So Q: six", " it is", ("Q:",)) == "So Q: six it is", "the writer itself has not stopped there"
