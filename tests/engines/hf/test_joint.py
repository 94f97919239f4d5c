"""Models that decode together: the joint engine against brute force, in batches, in parts, and behind a store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

import tiny
from engines.conformance import TEXTS, EngineConformance, Reference
from lm_eval_tandem.engines import Completion, Prompt, Sampling
from lm_eval_tandem.engines.cached import CachedEngine, completion_of
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.engines.hf.joint import SEPARATOR, JointEngine
from lm_eval_tandem.engines.hf.joint_cache import Combination, Member
from lm_eval_tandem.engines.hf.union_vocabulary import MemberVocabulary, SharedVocabulary, UnionVocabulary, token_bytes
from lm_eval_tandem.errors import ArgumentError, ContextError, EngineError
from lm_eval_tandem.store import Store

N = 12
ASKED = TEXTS[:4]
Loaded = dict[tuple[str, int], HFEngine]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """Two models with the pair's tokenizer and one with another, each with batch sizes 1 and 3."""
    folder = tmp_path_factory.mktemp("joint")
    tiny.save(folder / "a", "llama", 1, initializer_range=0.25)
    tiny.save(folder / "b", "qwen3", 2)
    tiny.save(folder / "c", "llama", 3, tiny.other_tokenizer(), initializer_range=0.15)
    given = {"dtype": "float32", "device": "cpu"}
    engines = {
        (name, size): HFEngine({"pretrained": str(folder / name), "batch_size": size, **given})
        for name in "abc"
        for size in (1, 3)
    }
    yield engines
    for engine in engines.values():
        engine.close()


def joined(loaded: Loaded, names: str, size: int = 3, **how: Any) -> JointEngine:
    return JointEngine([loaded[name, size] for name in names], **{"union": "c" in names, **how})


def answers(engine: Any, sampling: Sampling | None = None, texts: Sequence[str] = ASKED) -> list[Completion]:
    async def together() -> list[Completion]:
        return await asyncio.gather(*(engine.generate(Prompt(text), sampling or Sampling(N)) for text in texts))

    return asyncio.run(together())


@cache
def spelled(engine: HFEngine) -> list[Any]:
    """What each token id of a byte-level tokenizer stands for, independently of the engine."""
    tokenizer, byte = engine.lm.tokenizer, {letter: byte for byte, letter in bytes_to_unicode().items()}
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    keys: list[Any] = [
        name if i in tokenizer.all_special_ids else bytes(map(byte.get, name)) for i, name in enumerate(names)
    ]
    keys[tokenizer.eos_token_id] = "the end"
    return keys


def read_by(engine: HFEngine, keys: list[Any], key: Any) -> list[int]:
    """The tokens in which a model reads what a key stands for."""
    if key in keys:
        return [keys.index(key)]
    whole = key if isinstance(key, bytes) else key.encode()
    encoded = engine.lm.tokenizer.encode(whole.decode(errors="replace"), add_special_tokens=False)
    if encoded and b"".join(keys[token] for token in encoded) == whole:
        return list(encoded)
    rest, tokens = whole, []
    while rest:
        fitting = [one for one in keys if isinstance(one, bytes) and rest.startswith(one)]
        if not fitting:
            return encoded or [min(i for i, one in enumerate(keys) if isinstance(one, bytes))]
        tokens.append(keys.index(max(fitting, key=len)))
        rest = rest[len(max(fitting, key=len)) :]
    return tokens


def brute_force(
    members: Sequence[HFEngine], text: str, weights: Sequence[float], threshold: float | None = None
) -> tuple[list[Any], list[bool]]:
    """What N tokens stand for, and which all models chose: no cache, no batch, a dictionary for the union."""
    keys = [spelled(member) for member in members]
    ids = [member.encode(text) for member in members]
    chosen: list[Any] = []
    joint: list[bool] = []
    while len(chosen) < N and "the end" not in chosen:
        with torch.inference_mode():
            logits = [
                member.lm.model(torch.tensor([own])).logits[0, -1] for member, own in zip(members, ids, strict=True)
            ]
        each = [row.softmax(-1).tolist() for row in logits]
        total: dict[Any, float] = {}
        for weight, own, row in zip(weights, keys, each, strict=True):
            for key, p in zip(own, row, strict=True):
                total[key] = total.get(key, 0.0) + weight * p
        joint.append(threshold is None or max(each[0]) < threshold)
        chosen.append(max(total, key=total.__getitem__) if joint[-1] else keys[0][each[0].index(max(each[0]))])
        for member, own, before in zip(members, keys, ids, strict=True):
            before += read_by(member, own, chosen[-1])
    return chosen, joint


def stand_for(engine: JointEngine, completion: Completion) -> list[Any]:
    """What the tokens of an answer stand for, as `brute_force` has it."""
    if isinstance(engine.vocabulary, UnionVocabulary):
        keys: list[Any] = engine.vocabulary.keys
    else:
        keys = spelled(engine.members[0])
    return ["the end" if token in engine.vocabulary.ends else keys[token] for token in completion.token_ids]


@pytest.mark.parametrize(
    ("names", "weights", "threshold"),
    [
        ("ab", (3, 1), None),
        ("ab", None, 0.12),
        ("ac", None, None),
        ("ca", (1, 2), 0.08),
    ],
)
def test_answers_are_those_of_brute_force_at_every_batch_size(
    loaded: Loaded, names: str, weights: tuple[float, ...] | None, threshold: float | None
) -> None:
    """One vocabulary and two, weights, and the gate, whose rows need the others at different steps."""
    found = []
    for size in (3, 1):
        engine = joined(loaded, names, size, weights=weights, threshold=threshold)
        found.append(answers(engine))
        assert [one.token_ids for one in found[-1]] == [one.token_ids for one in found[0]]
        assert [one.turns for one in found[-1]] == [one.turns for one in found[0]]
    shares = [weight / sum(weights) for weight in weights] if weights else [0.5, 0.5]
    everything: list[bool] = []
    for text, completion in zip(ASKED, found[0], strict=True):
        chosen, joint = brute_force(engine.members, text, shares, threshold)
        assert stand_for(engine, completion) == chosen
        runs = [len(list(run)) for _, run in groupby(joint)]
        assert completion.turns == tuple([0, *runs] if joint[0] else runs)
        everything += joint
        read = [[token for key in chosen for token in read_by(m, spelled(m), key)] for m in engine.members]
        assert engine.member_ids(completion.token_ids) == read
        if names != "ab":
            whole = b"".join(key for key in chosen if isinstance(key, bytes)).decode(errors="replace")
            assert completion.text == whole
            assert engine.decode(completion.token_ids) == whole.rstrip("\N{REPLACEMENT CHARACTER}")
    assert threshold is None or 0.1 < np.mean(everything) < 0.9


def test_the_union_of_equal_vocabularies_is_the_vocabulary(loaded: Loaded) -> None:
    sampling = Sampling(N, return_token_stats=True)
    plain, united = (answers(joined(loaded, "ab", union=union), sampling) for union in (False, True))
    for one, other in zip(plain, united, strict=True):
        assert (one.text, one.token_ids) == (other.text, other.token_ids)
        np.testing.assert_allclose(one.logprob, other.logprob, atol=1e-5)
    a, b = (loaded[name, 3] for name in "ab")
    parts = [MemberVocabulary(e.lm.tokenizer, e.network.vocabulary, e.end_tokens, e.encode_part) for e in (a, b)]
    members = [Member(e.name, e.network, None, 256) for e in (a, b)]
    logits = [torch.randn(4, 1335), torch.randn(4, 1335)]
    tables = []
    for vocabulary in (UnionVocabulary(parts), SharedVocabulary(1335, a.end_tokens)):
        combination = Combination(members, vocabulary, [0.25, 0.75], None)
        own = [combination.distribution(m, values) for m, values in enumerate(logits)]
        tables.append(combination.average(own, combination.weights))
    np.testing.assert_allclose(*tables, atol=1e-5)


@pytest.mark.parametrize(("names", "threshold"), [("ab", None), ("ca", 0.12)])
def test_an_answer_in_parts_is_the_whole_answer(loaded: Loaded, names: str, threshold: float | None) -> None:
    """Whether or not what an earlier call computed is still there; then no more than one token is read again."""
    engine = joined(loaded, names, threshold=threshold)
    wholes = answers(engine)

    async def parts(text: str, session: str | None) -> list[Completion]:
        done: list[Completion] = []
        for budget in (3, 6, N):
            before = tuple(token for one in done for token in one.token_ids)
            done.append(await engine.generate(Prompt(text, before, session), Sampling(budget - len(before))))
        assert session is None or done[-1].prompt_tokens - done[-1].cached_tokens <= max(2, len(" sandal"))
        engine.release(text)
        return done

    async def everything(kept: bool) -> list[list[Completion]]:
        return await asyncio.gather(*(parts(text, text if kept else None) for text in ASKED))

    for kept in (True, False):
        for whole, done in zip(wholes, asyncio.run(everything(kept)), strict=True):
            assert tuple(token for one in done for token in one.token_ids) == whole.token_ids
            assert sum(sum(one.turns[1::2]) for one in done) == sum(whole.turns[1::2])


def test_each_answer_ends_at_its_stop_string(loaded: Loaded) -> None:
    for engine in (joined(loaded, "ab"), joined(loaded, "ac")):
        for text, whole in zip(ASKED, answers(engine), strict=True):
            stop = max(whole.text[8:].split("\N{REPLACEMENT CHARACTER}"), key=len)[:3]
            [found] = answers(engine, Sampling(N, (stop,)), [text])
            assert found.text == whole.text.split(stop)[0]
            assert found.finish_reason == "stop"
            assert found.token_ids == whole.token_ids[: len(found.token_ids)]
            assert len(found.token_ids) < N


def test_sampling_depends_on_prompt_and_seed_alone(loaded: Loaded) -> None:
    sampling = Sampling(N, temperature=0.9, top_p=0.95, top_k=40, seed=7)
    three, one = (answers(joined(loaded, "ca", size), sampling) for size in (3, 1))
    assert [c.token_ids for c in three] == [c.token_ids for c in one]
    assert three[0].token_ids != answers(joined(loaded, "ca"), replace(sampling, seed=8))[0].token_ids


def test_a_store_keeps_the_turns(loaded: Loaded, tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    runs = []
    for _ in range(2):
        engine = CachedEngine(joined(loaded, "ca", threshold=0.12), store)
        runs.append(answers(engine))
        computed = engine.work.decode_tokens
    assert runs[1] == runs[0]
    assert computed == 0
    assert len(runs[0][0].turns) > 2
    whole = runs[0][0]
    part = asyncio.run(engine.generate(Prompt(TEXTS[0], whole.token_ids[:5], horizon=N - 5), Sampling(4)))
    assert engine.work.decode_tokens == 0
    fresh = asyncio.run(engine.engine.generate(Prompt(TEXTS[0], whole.token_ids[:5]), Sampling(4)))
    assert (part.token_ids, part.turns) == (fresh.token_ids, fresh.turns)
    store.close()


def test_a_completion_of_an_older_store_has_no_turns() -> None:
    value = asdict(Completion("x", (1,), "stop", 1, 0, 0.1))
    del value["turns"]
    assert completion_of(value).turns == ()


def test_each_member_reads_its_own_rendering(loaded: Loaded) -> None:
    engine, messages = joined(loaded, "ac"), (("user", "How many coins?"),)
    templates = ("{{ messages[0].content }} A:", "Q: {{ messages[0].content }} A:")
    for member, template in zip(engine.members, templates, strict=True):
        member.lm.tokenizer.chat_template = template
    text = engine.render(messages)
    assert text == f"How many coins? A:{SEPARATOR}Q: How many coins? A:"
    parts = text.split(SEPARATOR)
    assert engine.member_prompts(text) == [m.encode(part) for m, part in zip(engine.members, parts, strict=True)]
    assert engine.encode(text) == engine.members[0].encode(parts[0])
    found, *others = answers(engine, texts=(text, *parts))
    assert found.token_ids not in [one.token_ids for one in others]
    engine.members[1].lm.tokenizer.chat_template = templates[0]
    assert engine.render(messages) == parts[0]
    with pytest.raises(EngineError, match=r"U\+001D"):
        engine.render((("user", f"one{SEPARATOR}two"),))
    with pytest.raises(EngineError, match=r"U\+001D 2 times"):
        answers(engine, texts=[SEPARATOR.join("xyz")])


def test_what_cannot_work_is_refused_in_a_sentence(loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"/a and .*/c have different vocabularies.*use aggregation=gac"):
        joined(loaded, "ac", union=False)
    for wrong in ({"weights": (1,)}, {"weights": (0, 0)}, {"weights": (2, -1)}, {"threshold": 1.5}):
        with pytest.raises(ArgumentError, match="leave"):
            joined(loaded, "ab", **wrong)
    engine = joined(loaded, "ab")
    with pytest.raises(EngineError, match=r"repetition_penalty=1\.2"):
        answers(engine, Sampling(4, repetition_penalty=1.2))
    assert answers(engine, Sampling(4, repetition_penalty=1.0)) != []
    with pytest.raises(EngineError, match="do not score"):
        asyncio.run(engine.score(Prompt("x")))
    with pytest.raises(ContextError, match=r"window of .*/a"):
        answers(engine, Sampling(engine.window))
    with pytest.raises(ContextError, match=r"new tokens are \d+ tokens of .*/c, whose window has 256"):
        answers(joined(loaded, "ac", weights=(1, 0)), Sampling(engine.window - 60), TEXTS[1:2])
    windowed = HFEngine({"pretrained": str(tiny.save(tmp_path, "mistral")), "dtype": "float32", "device": "cpu"})
    with pytest.raises(EngineError, match="cannot decode together"):
        JointEngine([windowed, windowed], union=False)
    windowed.close()


def test_a_members_own_repetition_penalty_is_ignored(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = answers(joined(loaded, "ab"))
    monkeypatch.setattr(loaded["a", 3].lm.model.generation_config, "repetition_penalty", 1.5)
    assert [one.token_ids for one in answers(joined(loaded, "ab"))] == [one.token_ids for one in plain]


def test_tokens_of_other_families_are_their_bytes() -> None:
    pieces = ["<unk>", "\u2581the", "s", "<0xE2>", "\u2581", "<tool>"]
    sentencepiece = Tokenizer(models.BPE({name: i for i, name in enumerate(pieces)}, [], byte_fallback=True))
    sentencepiece.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    sentencepiece.add_tokens([AddedToken("<tool>", special=False)])
    found = token_bytes(PreTrainedTokenizerFast(tokenizer_object=sentencepiece), dict(enumerate(pieces)))
    assert list(found.values()) == [b"<unk>", b" the", b"s", b"\xe2", b" ", b"<tool>"]
    words = ["the", "coin", "##s"]
    wordpiece = Tokenizer(models.WordPiece({name: i for i, name in enumerate(words)}, unk_token="the"))
    wordpiece.decoder = decoders.WordPiece()
    found = token_bytes(PreTrainedTokenizerFast(tokenizer_object=wordpiece), dict(enumerate(words)))
    assert list(found.values()) == [b" the", b" coin", b"s"]


class TestOneModelTwice(EngineConformance):
    """Two members with the same weights answer as one of them alone, so that they keep the contract of all engines."""

    @pytest.fixture
    def engine(self, loaded: Loaded) -> JointEngine:
        return joined(loaded, "aa")

    @pytest.fixture
    def reference(self, loaded: Loaded) -> Reference:
        return Reference(loaded["a", 3].lm.model, loaded["a", 3].lm.tokenizer)

    @pytest.mark.skip(reason="a joint engine does not score")
    def test_score_is_exact_over_the_whole_vocabulary(self) -> None:  # type: ignore[override]
        """See `EngineConformance`."""

    @pytest.mark.skip(reason="a joint engine does not score")
    def test_what_is_scored_since_a_token_is_what_is_scored_of_the_whole(self) -> None:  # type: ignore[override]
        """See `EngineConformance`."""

    @pytest.mark.skip(reason="a joint engine does not score")
    def test_a_prompt_that_grows_is_scored_as_if_read_at_once(self) -> None:  # type: ignore[override]
        """See `EngineConformance`."""

    @pytest.mark.skip(reason="it scores; test_what_cannot_work_is_refused_in_a_sentence has the rest of it")
    def test_a_call_that_exceeds_the_window_is_refused(self) -> None:  # type: ignore[override]
        """See `EngineConformance`."""

    @pytest.mark.skip(reason="a joint engine makes no use of drafts")
    def test_a_draft_changes_no_output(self) -> None:  # type: ignore[override]
        """See `EngineConformance`."""
