"""What the record of an ensemble says: which of the generated tokens are in no answer, and why a model was chosen."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from bundled import COMMON, instances
from lm_eval_tandem import pair
from lm_eval_tandem.cascade.prompts import Question
from lm_eval_tandem.cli import main
from lm_eval_tandem.ensembles import selection
from lm_eval_tandem.ensembles.reference_file import Reference, write_reference
from lm_eval_tandem.harness.ensemble_model import EnsembleLM
from lm_eval_tandem.ledger import Record, totals

LENGTH = 20


def records(**given: Any) -> list[Record]:
    lm = EnsembleLM(**{**COMMON, **given})
    lm.generate_until(instances(4, max_gen_toks=LENGTH), disable_tqdm=True)
    lm.close()
    return lm.records


@pytest.mark.parametrize(
    "strategy",
    [
        {"aggregation": "average"},
        {"aggregation": "distribution", "weights": "1:3"},
        {"aggregation": "gac"},
        {"aggregation": "gac", "threshold": 0.999},
    ],
    ids=str,
)
def test_of_tokens_that_models_choose_together_none_is_refused(strategy: dict[str, Any]) -> None:
    """Each model has computed each of them, so each has it on its bill, and every one of them is in the answer."""
    found = records(**strategy)
    for record in found:
        chosen = sum(part.tokens for part in record.segments if part.writer == "mentor+intern")
        assert record.spent["intern"].new == chosen
        assert record.spent["mentor"].new == sum(part.tokens for part in record.segments)
        assert record.refused_tokens == 0
    assert any(record.spent["intern"].new for record in found), "the second model took no part"
    assert totals(found)["refused_tokens"] == 0


@pytest.mark.parametrize(
    ("strategy", "texts"),
    [
        ({"selection": "random"}, 1),
        ({"aggregation": "loop", "segment_tokens": 7}, 1),
        ({"aggregation": "vote"}, 2),
        ({"aggregation": "best_of", "scorer": "logprob:mentor"}, 2),
        ({"aggregation": "reward_based", "segment_tokens": 7, "scorer": "logprob:intern"}, 2),
        ({"aggregation": "reward_based", "scorer": "logprob:intern", "score_threshold": 0.5}, 2),
    ],
    ids=str,
)
def test_of_responses_and_segments_those_that_were_not_taken_are_refused(strategy: dict[str, Any], texts: int) -> None:
    for record in records(**strategy):
        taken: dict[str, int] = {}
        for part in record.segments:
            taken[part.writer] = taken.get(part.writer, 0) + part.tokens
        assert record.refused_tokens == sum(one.new - taken.get(name, 0) for name, one in record.spent.items())
        assert (record.refused_tokens > 0) == (texts > 1)


def assessed(lm: EnsembleLM, texts: list[str], measured: Any) -> list[dict[str, Any]]:
    """What a measurement finds for each text, by model."""
    return [{name: asyncio.run(measured(engine, text)) for name, engine in lm.engines.items()} for text in texts]


def test_the_numbers_that_models_were_selected_by_are_recorded(tmp_path: Path) -> None:
    """As they follow by hand from what the models read, and in the ledger's file."""
    mentor, intern = Reference(2.0, 0.5, 0.8, 0.1, 9, 0.25), Reference(3.0, 0.5, 0.7, 0.1, 9, -0.5)
    usual = {"pair/mentor": mentor, "pair/intern": intern}
    write_reference(tmp_path / "reference.json", usual, {})
    texts = [str(one.args[0]) for one in instances(4)]

    async def z(engine: Any, text: str) -> float:
        perplexity, confidence = (await selection.measure(engine, text, None)).values
        one = mentor if engine.name == str(pair.MENTOR) else intern
        return (one.ppl_mean - perplexity) / one.ppl_std + (confidence - one.conf_mean) / one.conf_std

    async def says(engine: Any, text: str) -> float:
        return (await selection.assess(engine, selection.assessment_prompt(engine, Question(text)), None)).value

    for kind, measured in (("zscore", z), ("self_assessment", says)):
        given = {"selection": kind, "reference": str(tmp_path / "reference.json"), "ledger": tmp_path / f"{kind}.jsonl"}
        lm = EnsembleLM(**{**COMMON, **given}, **({"count": 1} if kind == "zscore" else {}))
        lm.generate_until(instances(4, max_gen_toks=4), disable_tqdm=True)
        by_hand = assessed(lm, texts, measured)
        lm.close()
        lines = [json.loads(line) for line in given["ledger"].read_text().splitlines()[1:]]
        for line in lines:
            expected = by_hand[line["doc_id"]]
            if kind == "self_assessment":
                expected = {"mentor": expected["mentor"] - 0.25, "intern": expected["intern"] + 0.5}
            assert line["selection_scores"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
            assert line["selected"] == [max(expected, key=lambda name: expected[name])]
            assert "response_scores" not in line


def test_own_questions_come_back_with_the_score_of_every_response(tmp_path: Path) -> None:
    """The chosen one is that of the answer, and has the highest; `random` selects by no number."""
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"question": one.args[0]}) + "\n" for one in instances(3)))
    for given in ({"aggregation": "best_of", "scorer": "logprob:intern"}, {"selection": "random"}):
        config = {"model": "ensemble", "model_args": {**COMMON, **given}, "gen_kwargs": {"max_gen_toks": LENGTH}}
        (tmp_path / "c.yaml").write_text(json.dumps(config))
        output = tmp_path / f"{next(iter(given))}.jsonl"
        main(["run", str(tmp_path / "c.yaml"), "--input", str(tmp_path / "in.jsonl"), "--output", str(output)])
        told = [json.loads(line)["tandem"] for line in output.read_text().splitlines()]
        if "selection" in given:
            assert not any({"selection_scores", "response_scores"} & set(one) for one in told)
            continue
        for one in told:
            scores, (part,) = one["response_scores"], one["segments"]
            assert set(scores) == set(one["selected"]) == {"mentor", "intern"}
            assert scores[part["writer"]] == max(scores.values()) == pytest.approx(part["score"])
        assert len({score for one in told for score in one["response_scores"].values()}) > 3
