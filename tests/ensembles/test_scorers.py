"""What rates candidates: log-probabilities and reward models as a plain forward pass gives them, and a server."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
)

import tiny
from engines.llamacpp.local import NEEDS_LLAMACPP, converted, opened
from lm_eval_tandem import pair
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.engines.hf.reward_model import RewardModel
from lm_eval_tandem.engines.hf.reward_text import AnswerReader
from lm_eval_tandem.engines.http.scorer import HTTPScorer
from lm_eval_tandem.engines.http.text import TokenCounter
from lm_eval_tandem.engines.rating import Candidate, Score, Scorer
from lm_eval_tandem.ensembles.scorers import LogprobScorer, check, parse
from lm_eval_tandem.errors import ArgumentError, CallError, ContextError, EngineError, UnreachableError

QUESTION = "Tom has 3 boxes of 4 coins."
ANSWERS = ("There are 12 coins.", "He has 3.\n\nThere are 4 in each.\n\n3 * 4 = 12.", "7", "None.\n\nSo 0.")
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
SEPARATOR = "\n\n"
KEY = "sk-very-secret"


def candidate(text: str, begun: str = "", question: str = QUESTION, **prompts: str) -> Candidate:
    return Candidate(question, None, begun, text, prompts, "q")


def rate(scorer: Scorer, *candidates: Candidate) -> list[Score]:
    return asyncio.run(scorer.score(candidates))


def save_reward(folder: Path, model_class: Any, template: str | None, labels: int, **changes: Any) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(pair.INTERN)
    tokenizer.chat_template = template
    settings = tiny.config("llama", len(tokenizer))
    settings.initializer_range, settings.num_labels = 0.2, labels
    settings.pad_token_id, settings.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    for name, value in changes.items():
        setattr(settings, name, value)
    torch.manual_seed(0)
    model_class(settings).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[None, TEMPLATE], ids=["plain", "template"])
def prm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward(tmp_path_factory.mktemp("prm"), LlamaForTokenClassification, request.param, 2)


def step_rewards(folder: Path, steps: list[str]) -> list[float]:
    """Each step's reward, computed on the answer up to there, which a causal model cannot tell from the whole."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForTokenClassification.from_pretrained(folder)
    encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    head = f"<user>{QUESTION}</s><assistant>" if tokenizer.chat_template else f"{QUESTION}\n"
    ids, rewards = encode(head), []
    for step in steps:
        ids = [*ids, *encode(step), *encode(SEPARATOR)]
        with torch.no_grad():
            rewards.append(float(model(torch.tensor([ids])).logits[0, -1].softmax(-1)[1]))
    return rewards


def test_a_process_reward_model_rates_the_steps_of_the_text_alone(prm: Path) -> None:
    scorer = RewardModel(str(prm), device="cpu")
    one, two, three = step_rewards(prm, ANSWERS[1].split(SEPARATOR))
    begun, rest = ANSWERS[1].split(SEPARATOR, 1)
    scores = rate(
        scorer,
        candidate(ANSWERS[1]),
        candidate(rest, begun + SEPARATOR),
        candidate(SEPARATOR + rest, begun),
        candidate(ANSWERS[1][4:] + SEPARATOR, ANSWERS[1][:4]),  # the step that began before ends here
        candidate("\n", ANSWERS[1]),
    )
    expected = [(one + two + three) / 3, (two + three) / 2, (two + three) / 2, (one + two + three) / 3, -math.inf]
    assert [score.value for score in scores] == pytest.approx(expected, abs=1e-5)
    assert len({round(reward, 3) for reward in (one, two, three)}) == 3
    assert [score.tokens > 20 for score in scores] == [True] * 4 + [False]
    scorer.close()


@pytest.mark.parametrize(("labels", "template"), [(1, TEMPLATE), (3, None)], ids=["template", "plain"])
def test_an_outcome_reward_model_rates_question_and_answer_as_transformers_does(
    tmp_path: Path, labels: int, template: str | None
) -> None:
    folder = save_reward(tmp_path, LlamaForSequenceClassification, template, labels)
    scorer = RewardModel(str(folder), device="cpu", batch_size=4)
    values = [score.value for score in rate(scorer, *(candidate(answer[2:], answer[:2]) for answer in ANSWERS))]
    scorer.close()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), LlamaForSequenceClassification.from_pretrained(folder)
    for answer, value in zip(ANSWERS, values, strict=True):
        text = f"<user>{QUESTION}</s><assistant>{answer}</s>" if template else f"{QUESTION}\n{answer}"
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(text).input_ids])).logits[0]
        assert value == pytest.approx(float(logits[0] if labels == 1 else logits.softmax(-1)[-1]), abs=1e-5)


@pytest.mark.parametrize(
    ("model_class", "changes"),
    [
        (LlamaForTokenClassification, {}),
        (LlamaForSequenceClassification, {}),
        (LlamaForSequenceClassification, {"pad_token_id": None}),
    ],
    ids=["process", "outcome", "without a padding token"],
)
def test_scores_do_not_depend_on_the_batch_nor_on_the_caller(
    tmp_path: Path, model_class: Any, changes: dict[str, Any]
) -> None:
    scorer = RewardModel(str(save_reward(tmp_path, model_class, None, 2, **changes)), device="cpu")
    candidates = [candidate(answer) for answer in ANSWERS]

    async def apart() -> list[float]:
        return [score.value for [score] in await asyncio.gather(*(scorer.score([one]) for one in candidates))]

    scorer.batch_size = 1
    alone = [score.value for score in rate(scorer, *candidates)]
    scorer.batch_size = 4
    for values in ([score.value for score in rate(scorer, *candidates)], asyncio.run(apart())):
        assert values == pytest.approx(alone, abs=1e-5)
    scorer.close()


def test_a_conversation_keeps_its_messages(tmp_path: Path) -> None:
    scorer = RewardModel(str(save_reward(tmp_path, LlamaForTokenClassification, TEMPLATE, 2)), device="cpu")
    plain = candidate("So 12.", "He has 3.\n\n")
    chat = Candidate(f"user: {QUESTION}", (("user", QUESTION), ("assistant", "He ")), "has 3.\n\n", "So 12.", {}, "q")
    first, second = rate(scorer, plain, chat)
    assert (second.value, second.tokens) == (pytest.approx(first.value, abs=1e-5), first.tokens)
    scorer.close()


def test_what_exceeds_the_window_fails_alone(prm: Path) -> None:
    scorer = RewardModel(str(prm), device="cpu", batch_size=4, max_length=64)

    async def both() -> list[Any]:
        calls = [scorer.score([candidate("12 " * 90)]), scorer.score([candidate("12")])]
        return await asyncio.gather(*calls, return_exceptions=True)

    refused, [score] = asyncio.run(both())
    assert isinstance(refused, ContextError)
    assert "64 tokens" in str(refused)
    assert 0 < score.value < 1
    scorer.close()
    with pytest.raises(EngineError, match="closed"):
        rate(scorer, candidate("12"))


def test_only_whole_reward_models_are_loaded(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="LlamaForCausalLM and no reward model"):
        RewardModel(str(pair.INTERN))
    folder = save_reward(tmp_path, LlamaForSequenceClassification, None, 1)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 3}), encoding="utf-8")
    with pytest.raises(EngineError, match=r"no weights for model\.layers\.2"):
        RewardModel(str(folder))


@pytest.mark.parametrize("separator", [None, SEPARATOR], ids=["outcome", "process"])
def test_special_tokens_of_a_tokenizer_surround_what_is_read(separator: str | None) -> None:
    tokenizer = tiny.other_tokenizer()
    end = ("<end>", tokenizer.eos_token_id)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single="<end> $A <end>", special_tokens=[end])
    reading = AnswerReader("rm", tokenizer, separator, None).read(candidate("It is 7.\n\nNo, 8."))
    expected = tokenizer(f"{QUESTION}\nIt is 7.\n\nNo, 8." + (separator or "")).input_ids
    assert reading.ids == expected
    assert reading.ids[0] == reading.ids[-1] == tokenizer.eos_token_id
    assert [expected[end] for end in reading.ends] == tokenizer("\n").input_ids[1:-1] * len(reading.ends)
    assert len(reading.ends) == (2 if separator else 0)


# Log-probabilities


class Estimating:
    """An engine like one behind a server: what it reports is of the server's tokens, what it encodes are estimates."""

    cannot_score, parameters, identity = "", None, {"engine": "server"}

    def __init__(self, engine: HFEngine) -> None:
        self.encode, self.score = TokenCounter().encode, engine.score


def test_the_log_probability_of_a_text_is_that_of_a_plain_forward_pass(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path)
    engine = HFEngine({"pretrained": str(folder), "device": "cpu", "dtype": "float32", "batch_size": 4})
    scorer = parse("logprob:intern", {"intern": engine})
    begun = "He has 3.\n"
    texts = ["There are 12 coins.", "7", ""]
    scores = rate(scorer, *(candidate(text, begun, intern=QUESTION) for text in texts))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    before = tokenizer(QUESTION + begun).input_ids
    for text, score in zip(texts[:2], scores, strict=False):
        ids = tokenizer(QUESTION + begun + text).input_ids
        assert ids[: len(before)] == before
        with torch.no_grad():
            logprob = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = np.mean([float(logprob[i - 1, ids[i]]) for i in range(len(before), len(ids))])
        assert score.value == pytest.approx(expected, abs=1e-4)
        assert score.tokens == len(ids)
    assert scores[2] == Score(-math.inf, 0, 0.0)
    assert (scorer.parameters, scorer.name) == (engine.parameters, "logprob:intern")
    server: Any = Estimating(engine)
    estimated = rate(LogprobScorer("intern", server), *(candidate(text, begun, intern=QUESTION) for text in texts[:2]))
    assert [score.value for score in estimated] == pytest.approx([score.value for score in scores[:2]], abs=1e-4)
    engine.cannot_score = "it cannot."
    with pytest.raises(EngineError, match=r"^it cannot\.$"):
        LogprobScorer("intern", engine)
    engine.close()


@pytest.mark.parametrize("kind", ["hf", pytest.param("llamacpp", marks=NEEDS_LLAMACPP)])
def test_what_the_texts_of_a_question_begin_with_is_read_once(kind: str, tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model")
    if kind == "hf":
        engine: Any = HFEngine({"pretrained": str(folder), "device": "cpu", "dtype": "float32", "batch_size": 4})
    else:
        engine = opened(converted(folder, tmp_path))
    questions = [f"{name} says: {QUESTION}" for name in ("Ada", "Bob", "Cleo")]
    asked = [
        [Candidate(text, None, "", f"\n{answer}", {"intern": text}, text) for answer in ANSWERS] for text in questions
    ]

    async def score() -> list[list[Score]]:
        scorer = LogprobScorer("intern", engine)
        return await asyncio.gather(*(scorer.score(candidates) for candidates in asked))

    at_once = asyncio.run(score())
    count = lambda text: len(engine.encode(text))  # noqa: E731
    answers = sum(
        count(text + one.text) - count(text) for text, ones in zip(questions, asked, strict=True) for one in ones
    )
    again = len(questions) * len(ANSWERS)  # the token that predicts the first new one
    assert engine.work.prefill_tokens <= sum(map(count, questions)) + answers + again
    if kind == "llamacpp":
        assert engine.work.calls <= answers, "tokens of the prompts, which nobody rates, were measured one by one"
    for text in questions:
        engine.release(text)
    alone = [[rate(LogprobScorer("intern", engine), one)[0] for one in candidates] for candidates in asked]
    for ones, others in zip(at_once, alone, strict=True):
        assert [one.value for one in ones] == pytest.approx([one.value for one in others], abs=1e-4)
    engine.close()


# A server


class Server(ThreadingHTTPServer):
    """Answers each request with the next of its replies, the last one for ever, and keeps the requests."""

    def __init__(self, *replies: tuple[int, str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.requests = list(replies), list[tuple[dict[str, str], Any]]()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/rate/it"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((headers | {"path": self.path}, body))
        replies = self.server.replies
        status, text = replies.pop(0) if len(replies) > 1 else replies[0]
        self.send_response(status)
        self.send_header("content-type", "text/html" if text.startswith("<") else "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: Any) -> None:
        """Write nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def test_a_server_rates_the_candidates_of_a_question_in_one_request(server: Server) -> None:
    server.replies = [(500, "oops"), (200, '{"scores": [0.25, -3], "tokens": [7, 8], "dollars": 0.5}')]
    messages = (("system", "Be brief."), ("user", QUESTION))
    candidates = [Candidate("…", messages, "So", text, {}, "q") for text in (" 12.", " 7.")]
    scores = rate(HTTPScorer(server.url), *candidates)
    assert [(score.value, score.tokens, score.dollars) for score in scores] == [(0.25, 7, 0.25), (-3.0, 8, 0.25)]
    (_, first), (headers, second) = server.requests
    assert (
        first
        == second
        == {
            "question": "…",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}],
            "begun": "So",
            "candidates": [" 12.", " 7."],
        }
    )
    assert headers["path"] == "/rate/it"


def test_candidates_of_different_beginnings_keep_their_order(server: Server) -> None:
    server.replies = [(200, '{"scores": [1, 2]}')]
    scores = rate(HTTPScorer(server.url), candidate("a", "x"), candidate("b"), candidate("c", "x"), candidate("d"))
    assert [score.value for score in scores] == [1, 1, 2, 2]
    assert sorted(body["candidates"] for _, body in server.requests) == [["a", "c"], ["b", "d"]]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ('{"scores": [1]}', "1 scores for 2 candidates"),
        ('{"scores": [1, NaN]}', "nan, which is no finite number"),
        ('{"scores": [1, true]}', "True, which is no finite number"),
        ('{"scores": [1, 1e999]}', "inf, which is no finite number"),
        ('{"result": 1}', '{"result": 1}'),
        ("1, 2", "and is 1, 2"),
        ("<html><title>Bad gateway</title></html>", "and is Bad gateway"),
        ('{"error": {"message": "no such model"}}', "no such model"),
        ('{"scores": [1, 2], "tokens": [1]}', "2 numbers"),
    ],
)
def test_a_malformed_reply_fails_its_question_in_one_sentence(server: Server, reply: str, words: str) -> None:
    server.replies = [(200, reply)]
    with pytest.raises(CallError) as failed:
        rate(HTTPScorer(server.url), candidate("a"), candidate("b"))
    assert words in str(failed.value)
    assert str(failed.value).startswith(f"the scorer {server.url}: ")
    assert len(server.requests) == 1


def test_a_server_that_nobody_reaches_ends_the_run() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    for limits in ({"give_up": 0.0}, {"retries": 1}):
        with pytest.raises(UnreachableError, match=f"{url}.*check that"):
            rate(HTTPScorer(url, **limits), candidate("a"))  # type: ignore[arg-type]


def test_the_key_is_sent_where_it_is_named_and_shown_nowhere(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REWARD_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another")
    server.replies = [(200, '{"scores": [1]}'), (200, '{"scores": [1]}'), (401, f"bad {KEY}"), (400, f"bad {KEY}")]
    rate(HTTPScorer(server.url), candidate("a"))
    scorer = HTTPScorer(server.url, "REWARD_KEY")
    rate(scorer, candidate("a"))
    assert "authorization" not in server.requests[0][0]
    assert server.requests[1][0]["authorization"] == f"Bearer {KEY}"
    with pytest.raises(UnreachableError, match=r"refuses the key.*REWARD_KEY") as refused:
        rate(scorer, candidate("a"))
    with pytest.raises(CallError, match="400") as failed:
        rate(scorer, candidate("a"))
    assert KEY not in f"{refused.value}{failed.value}{scorer.identity}{scorer.name}{caplog.text}"


# Names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("logprob:tutor", "names no member of the ensemble; use one of logprob:mentor, logprob:intern"),
        ("mentor", "use one of logprob:mentor, logprob:intern"),
        ("logprop:mentor", "is not known"),
        ("./nowhere", "is no folder"),
        ("http://", "scorer=http:// is no web address"),
        ("https://me:secret@example.org/", "contains a secret"),
        ("http://a;http://b", "semicolon"),
        (str(pair.INTERN), "LlamaForCausalLM and no reward model"),
        (str(pair.INTERN.parent), "without a config.json"),
    ],
)
def test_a_scorer_that_cannot_work_is_refused_before_anything_is_loaded(text: str, words: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        check(text, ["mentor", "intern"])
    assert words in str(refused.value)


def test_options_without_effect_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWARD_KEY", raising=False)
    for text, options, words in (
        ("org/model", {"api_key_env": "REWARD_KEY"}, "has no effect"),
        ("http://localhost:1/", {"step_separator": "\n"}, "has no effect"),
        ("http://localhost:1/", {"api_key_env": "REWARD_KEY"}, "REWARD_KEY is not set"),
        ("org/model", {"separator": "\n"}, "no option of a scorer"),
    ):
        with pytest.raises(ArgumentError, match=words):
            check(text, ["intern"], options)
    check("http://localhost:1/", ["intern"], {"device": "cpu", "batch_size": 4, "step_separator": None})
    check("org/model", ["intern"], {"step_separator": "\n"})


def test_each_kind_of_name_makes_its_scorer(tmp_path: Path) -> None:
    folder = save_reward(tmp_path, LlamaForTokenClassification, None, 2)
    options = {"step_separator": "\n", "batch_size": "auto", "device": "cpu", "api_key_env": None}
    scorers = [parse(str(folder), {}, given) for given in (options, {"device": "cpu"})]
    first, second = (scorer.identity for scorer in scorers)
    assert json.loads(json.dumps(first)) == first != second
    assert (first["architecture"], first["dtype"]) == ("LlamaForTokenClassification", "torch.float32")
    assert "model.safetensors" in first["model"]
    weights = LlamaForTokenClassification.from_pretrained(folder).parameters()
    assert scorers[0].parameters == sum(weight.numel() for weight in weights)
    assert isinstance(parse("http://localhost:1/", {}, {"batch_size": 4}), HTTPScorer)
