"""The bundled pair: its tokenizer, its problems, its weights and its tasks' metrics."""

import importlib.util
import itertools
import json
import random
import re
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_tandem import _paths
from lm_eval_tandem.pair import INTERN, MENTOR
from lm_eval_tandem.pair import problems as pb
from lm_eval_tandem.pair.evaluate import EFFORTS

TASKS = _paths.task_configs() / "pair"
TOKENIZER = AutoTokenizer.from_pretrained(MENTOR)
PIECES = st.sampled_from(
    [
        " lantern",
        " 40",
        "40)",
        " 1)",
        "7:",
        "\n",
        " ",
        "\t",
        "<0x0A>",
        "\u2581",
        " x -=",
        "Answer: 7",
        "\u00e9",
        "\U0001f600",
    ]
)
TEXTS = st.text() | st.lists(PIECES | st.text(max_size=3)).map("".join)


def token_ids(text: str) -> list[int]:
    """Token ids of a text, without special tokens."""
    return TOKENIZER(text).input_ids


def metrics() -> ModuleType:
    """The module of the metrics, which lies beside the task files."""
    spec = importlib.util.spec_from_file_location("pair_metrics", TASKS / "pair_metrics.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documents(domain: str, split: str) -> list[dict]:
    """The committed rows."""
    return [json.loads(line) for line in (TASKS / f"{domain}_{split}.jsonl").read_text(encoding="utf-8").splitlines()]


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_no_text_is_changed_by_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(token_ids(text)) == text


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.sampled_from(" \n"), TEXTS)
def test_a_cut_before_white_space_changes_no_ids(before: str, white: str, after: str) -> None:
    assert token_ids(before + white + after) == token_ids(before) + token_ids(white + after)


@pytest.mark.parametrize("domain", pb.DOMAINS)
def test_tokens_of_the_models_texts_decode_one_by_one(domain: str) -> None:
    problem = pb.ProblemSampler("pieces").draw("test")
    for text in (pb.question(problem, domain, "Mira"), pb.mentor_answer(problem, domain), pb.intern_answer(problem)):
        ids = token_ids(text)
        assert "".join(TOKENIZER.decode([i]) for i in ids) == text
        assert all(TOKENIZER.decode(ids[:k]) + TOKENIZER.decode(ids[k:]) == text for k in range(len(ids)))


def test_a_single_user_message_renders_to_itself_and_both_roles_share_one_tokenizer() -> None:
    messages = [{"role": "user", "content": " a\nb "}]
    assert TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == " a\nb "
    assert (MENTOR / "tokenizer.json").read_bytes() == (INTERN / "tokenizer.json").read_bytes()


def test_every_good_has_one_token_and_a_price_of_one_digit() -> None:
    assert all(len(token_ids(" " + good)) == 1 for good in pb.GOODS)
    assert len(set(pb.GOODS)) == pb.ALL_GOODS
    assert set(pb.PRICES.values()) == set(range(1, 10))


@pytest.mark.parametrize("domain", pb.DOMAINS)
@pytest.mark.parametrize(("split", "count"), [("test", 1000), ("train", 8000)])
def test_the_committed_files_are_what_the_generator_writes(domain: str, split: str, count: int) -> None:
    rows = documents(domain, split)
    assert rows == pb.rows(domain, split, count)
    assert all(set(row) == {"id", "question", "answer", "steps"} for row in rows)


def test_splits_share_no_problem_and_training_draws_none_of_the_others() -> None:
    shapes = {}
    for split in ("model", "train", "test"):
        sampler = pb.ProblemSampler(split)
        drawn = [sampler.draw(split, 1) for _ in range(3000)]
        assert {problem.split for problem in drawn} == {split}
        shapes[split] = {(problem.start, problem.steps) for problem in drawn}
    assert len(set.union(*shapes.values())) == sum(map(len, shapes.values()))
    train, test = ({row["question"] for d in pb.DOMAINS for row in documents(d, split)} for split in ("train", "test"))
    assert not train & test


def bare(row: dict) -> str:
    """`Problem.bare` of a row's question in either domain."""
    start = re.search(r"with (\d+) coins|x = (\d+)", row["question"])
    deeds = re.findall(r"(buys an?|sells an?|x -=|x \+=) (\w+)", row["question"])
    steps = ("+" + good if deed.startswith(("sells", "x +")) else "-" + good for deed, good in deeds)
    return f"{start[1] or start[2]} {' '.join(steps)}"


def test_no_test_question_is_asked_elsewhere_or_was_one_of_the_first_draw() -> None:
    math, code, *train = (
        [bare(row) for row in documents(domain, split)] for split in ("test", "train") for domain in pb.DOMAINS
    )
    assert {"36 -redit +straw +bratug +bradaz -fence", "48 -grape -pitcher -trusiv -stone"} < pb.first_test_problems()
    groups = [set(math), set(code), set().union(*train), pb.first_test_problems()]
    assert [len(group) for group in groups[:2]] == [pb.TEST_QUESTIONS] * 2
    assert all(not a & b for a, b in itertools.combinations(groups, 2))


def test_the_training_stream_is_of_the_model_split_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval_tandem.pair import train

    splits = set()
    draw = pb.ProblemSampler.draw
    monkeypatch.setattr(
        pb.ProblemSampler, "draw", lambda self, split, *rest: splits.add(split) or draw(self, split, *rest)
    )
    for role, recipe in train.RECIPES.items():
        ids, weights = next(train.batches(role, recipe, {"share": 0.5}, "test"))
        assert ids.shape == weights.shape
    assert splits == {"model"}


def test_code_answers_are_what_the_programs_print() -> None:
    for row in documents("code", "test"):
        assert row["answer"] == pb.run_program(pb.program_of(row["question"]))


@pytest.mark.parametrize("domain", pb.DOMAINS)
def test_insights_hold_the_prices_and_no_answer(domain: str) -> None:
    sampler = pb.ProblemSampler("insights")
    for _ in range(200):
        problem = sampler.draw("test")
        insights, own = pb.insights(problem, domain), pb.mentor_answer(problem, domain)
        assert "Answer" not in insights
        assert all(f"{good} {pb.PRICES[good]}" in insights for _, good in problem.steps)
        assert metrics().extract(own) == metrics().extract(pb.intern_answer(problem)) == problem.totals[-1]
        assert all(0 <= total <= pb.MAX_TOTAL for total in problem.totals)


def test_the_intern_knows_the_prices_of_about_half_of_the_questions() -> None:
    sampler = pb.ProblemSampler("known")
    drawn = [sampler.draw("test") for _ in range(2000)]
    share = sum(all(good in pb.KNOWN_GOODS for _, good in problem.steps) for problem in drawn) / len(drawn)
    assert 0.45 < share < 0.65


def test_weights_load_and_keep_to_their_sizes() -> None:
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (MENTOR, INTERN)]
    for model in models:
        assert model.config.head_dim == 32
        assert model.config.max_position_embeddings == 512
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    mentor, intern = (sum(p.numel() for p in model.parameters()) for model in models)
    assert mentor / intern >= 4.5
    assert sum((folder / "model.safetensors").stat().st_size for folder in (MENTOR, INTERN)) < 6_000_000


def test_the_profile_fits_the_insights() -> None:
    profile = json.loads((MENTOR.parent / "profile.json").read_text(encoding="utf-8"))
    longest = pb.ProblemSampler(random.Random(0).random()).draw("test", pb.MAX_STEPS)
    assert profile["efforts"] == sorted(profile["efforts"])
    assert profile["efforts"][-1] > len(token_ids(pb.insights(longest, "code")))


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (" Steps: 1) lantern 7: 40 - 7 = 33 Answer: 33", 33),
        ("Answer: 1 Answer: -12.", -12),
        ("Answer: 1 Answer: none 7", None),
        ("Answer: 3.5", None),
        ("33", None),
        ("", None),
    ],
)
def test_only_the_number_after_the_last_answer_counts(response: str, answer: int | None) -> None:
    assert metrics().extract(response) == answer
    graded = metrics().process_results({"answer": 33}, [response])
    assert graded == {"acc": float(answer == 33), "no_answer": float(answer is None)}


def test_metrics_of_a_response_are_reported() -> None:
    response = type("Response", (str,), {"metrics": {"stage": 2.0, "tflops": 2.0}})("Answer: 5")
    graded = metrics().process_results({"answer": 5}, [response])
    assert graded == {"acc": 1.0, "no_answer": 0.0, "stage": 2.0, "tflops": 2.0, "mflops": 2e6}


@pytest.mark.parametrize("domain", pb.DOMAINS)
def test_no_token_of_the_judges_prompt_is_nearly_impossible_for_the_intern(domain: str) -> None:
    """One token with a loss of 30 nats would dominate every perplexity, and one of 89 nats would overflow it."""
    sampler, intern = pb.ProblemSampler("judge"), AutoModelForCausalLM.from_pretrained(INTERN)
    for effort in EFFORTS:
        problem = sampler.draw("test")
        insights = TOKENIZER.decode(token_ids(pb.insights(problem, domain))[:effort])
        ids = torch.tensor([token_ids(pb.question(problem, domain, "Mira") + " Insights:" + insights + " Steps:")])
        with torch.inference_mode():
            log_probabilities = intern(ids).logits[0, :-1].log_softmax(-1)
        assert -log_probabilities.gather(-1, ids[0, 1:, None]).min() < 14
