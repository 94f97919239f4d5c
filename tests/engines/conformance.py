"""The contract of `lm_eval_tandem.engines.Engine` as one suite of tests that every engine passes.

The contract, in the order of the tests:

1. *Greedy generation* gives the tokens of the model alone, whatever else is in the batch.
2. *Statistics of generated tokens* (`Sampling.return_token_stats`) are those that `score` gives for the same tokens
   in a prompt, over the whole vocabulary and before any sampling. Requesting them changes no token.
3. *`max_entropy`* ends a generation with the first token whose entropy is higher. The call returns the tokens up to and
   including that one, and a further call continues after them.
4. *Drafts* change no output, whether all, some or none of their tokens are right; nothing of a refused draft is left in
   the cache.
5. *A text that grows* by several calls (`Prompt.continued`) is the text of one uninterrupted call, and no call reads
   more than one block of known tokens again.
6. *`score`* gives log-probability and entropy of every token as float32 in nats, exact over the whole vocabulary; entry
   0 is NaN. A prompt that grows or changes within a session is scored as if it were read at once, but only its new part
   is read; the answer then starts from the judge's pass.
7. *Stop strings* end each generation of a batch by itself, with the token that completes one of them; the text is cut
   before them, and "stop" is the reason. Characters of several tokens, stop strings that span two calls, and thinking,
   which is not searched, are in `StopConformance`.
8. *`max_tokens`* holds for each call by itself, and "length" is the reason.
9. *Sampling* depends on the prompt and the seed alone, not on the rest of the batch.
10. *The window*: a call that exceeds it raises ContextError, whose message names the next step; nothing is truncated.
11. *Decoded text* has no special tokens.
12. *A cancelled call* is computed no further, and leaves the engine and all other calls unharmed.
13. *Reported tokens* (`Prompt.on_tokens`) are, joined, the beginning of the completion's, and come while it generates,
    in the event loop of the call. Reporting changes no output, and a call that was cancelled reports nothing more. What
    is settled of their text (`Engine.settled_text`) is the beginning of the answer.

To test an engine, subclass `EngineConformance` in a test module that defines two fixtures: `engine`, an engine in
float32 with batch size 4, and `reference`, the same weights and tokenizer in transformers (`Reference`). Set `block` if
its prefix cache holds whole blocks. What an engine cannot do is skipped by name, with the reason, in its subclass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_tandem.engines import Completion, Engine, Prompt, Sampling, ScoringView
from lm_eval_tandem.errors import ContextError

T = TypeVar("T")

TEXTS = [
    "Mira starts with 40 coins: 1) buys a lantern",
    "x",
    "0: x = 48\n1: x -= grape\n2: print(x)\nWhat does it print?",
    "A prompt in other words, with Ünïcode and 12345 in it, somewhat longer than the others are.",
    "Pia starts with 36 coins: 1) buys a redit, 2) sells a straw, 3) sells a bratug. How many coins does Pia have?",
    "Say nothing.",
    " leading space",
]


@dataclass
class Reference:
    """The model in transformers, one prompt at a time: what every engine has to agree with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def greedy(self, text: str, n: int) -> list[int]:
        """The first n greedy tokens after the text, fewer if it ends before."""
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        with torch.inference_mode():
            out = self.model.generate(ids, max_new_tokens=n, do_sample=False, pad_token_id=self.tokenizer.pad_token_id)
        return list(out[0, ids.shape[1] :].tolist())

    def stats(self, text: str, more: tuple[int, ...] = ()) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Log-probability and entropy of every token but the first, float64; `more` are tokens after the text."""
        ids = torch.tensor([self.tokenizer(text).input_ids + list(more)])
        with torch.inference_mode():
            log_p = torch.log_softmax(self.model(ids).logits[0, :-1].double(), -1)
        return log_p.gather(1, ids[0, 1:, None])[:, 0].numpy(), -(log_p.exp() * log_p).sum(-1).numpy()


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


async def together(*work: Coroutine[Any, Any, T]) -> list[T]:
    return list(await asyncio.gather(*work))


class EngineConformance:
    """The contract; see this module. A subclass needs the fixtures `engine` and `reference`."""

    block = 1
    """Number of known tokens that a call may read again: the block of the engine's prefix cache."""

    def test_greedy_tokens_are_those_of_one_prompt_alone(self, engine: Engine, reference: Reference) -> None:
        found = run(together(*(engine.generate(Prompt(text), Sampling(12)) for text in TEXTS)))
        for text, completion in zip(TEXTS, found, strict=True):
            assert list(completion.token_ids) == reference.greedy(text, 12), text
            assert completion.prompt_tokens == len(engine.encode(text))

    def test_stats_of_generated_tokens_are_those_of_a_scored_prompt(self, engine: Engine, reference: Reference) -> None:
        sampling = Sampling(6, return_token_stats=True)
        found = run(together(*(engine.generate(Prompt(text), sampling) for text in TEXTS[:4])))
        plain = run(engine.generate(Prompt(TEXTS[0]), Sampling(6)))
        assert plain.logprob is None
        assert plain.token_ids == found[0].token_ids
        for text, completion in zip(TEXTS, found, strict=False):
            assert completion.logprob is not None
            assert completion.entropy is not None
            logprob, entropy = reference.stats(text, completion.token_ids)
            n = len(completion.token_ids)
            np.testing.assert_allclose(completion.logprob, logprob[-n:], atol=1e-4)
            np.testing.assert_allclose(completion.entropy, entropy[-n:], atol=1e-4)

    def test_max_entropy_ends_a_generation_with_the_token_that_exceeds_it(
        self, engine: Engine, reference: Reference
    ) -> None:
        whole = run(together(*(engine.generate(Prompt(text), Sampling(12, return_token_stats=True)) for text in TEXTS)))
        limits = [float(np.sort(one.entropy)[len(one.token_ids) // 2]) for one in whole]  # type: ignore[arg-type]
        samplings = [Sampling(12, return_token_stats=True, max_entropy=limit) for limit in limits]
        found = run(together(*(engine.generate(Prompt(t, (), t), s) for t, s in zip(TEXTS, samplings, strict=True))))
        for text, limit, one, other in zip(TEXTS, limits, whole, found, strict=True):
            assert one.entropy is not None
            assert other.entropy is not None
            n = len(other.token_ids)
            assert other.token_ids == one.token_ids[:n]
            assert len(other.entropy) == n
            np.testing.assert_allclose(other.entropy, one.entropy[:n], atol=1e-4)
            assert (other.entropy[: n - 1] <= limit + 1e-4).all()
            if other.finish_reason == "max_entropy":
                assert other.entropy[-1] > limit - 1e-4
            else:
                assert n == len(one.token_ids)
                assert other.finish_reason == one.finish_reason
            rest = run(engine.generate(Prompt(text, other.token_ids, text), Sampling(12)))
            assert list(other.token_ids + rest.token_ids)[:12] == reference.greedy(text, 12 + n)[:12]
            engine.release(text)
        assert any(one.finish_reason == "max_entropy" for one in found)

    def test_a_draft_changes_no_output(self, engine: Engine, reference: Reference) -> None:
        drafts = [tuple(reference.greedy(text, 12)[: 2 * i]) + (5, 6)[: i % 3] for i, text in enumerate(TEXTS)]
        with_stop = Sampling(12, stop=(reference.tokenizer.decode(drafts[-1][7:8]),))
        for sampling in (Sampling(12), Sampling(4), with_stop):
            plain = run(together(*(engine.generate(Prompt(text), sampling) for text in TEXTS)))
            prompts = [Prompt(text, session=text, draft=draft) for text, draft in zip(TEXTS, drafts, strict=True)]
            found = run(together(*(engine.generate(prompt, sampling) for prompt in prompts)))
            for text, one, other in zip(TEXTS, plain, found, strict=True):
                assert (one.token_ids, one.text, one.finish_reason) == (
                    other.token_ids,
                    other.text,
                    other.finish_reason,
                )
                on = run(engine.generate(Prompt(text, other.token_ids, text), Sampling(3)))
                again = run(engine.generate(Prompt(text, other.token_ids), Sampling(3)))
                assert on.token_ids == again.token_ids, "a refused part of the draft is still in the cache"
                engine.release(text)

    def test_a_text_that_grows_is_that_of_one_uninterrupted_call(self, engine: Engine, reference: Reference) -> None:
        async def grow(text: str) -> tuple[int, ...]:
            ids: tuple[int, ...] = ()
            for budget in (3, 7, 15):
                completion = await engine.generate(Prompt(text, ids, text), Sampling(budget - len(ids)))
                if ids and not 1 <= completion.prompt_tokens - completion.cached_tokens <= self.block:
                    raise AssertionError(
                        f"{completion.prompt_tokens - completion.cached_tokens} tokens were read again"
                    )
                ids += completion.token_ids
                if completion.finish_reason == "stop":
                    break
            engine.release(text)
            return ids

        for text, ids in zip(TEXTS, run(together(*map(grow, TEXTS))), strict=True):
            assert list(ids) == reference.greedy(text, 15), text

    def test_score_is_exact_over_the_whole_vocabulary(self, engine: Engine, reference: Reference) -> None:
        found = run(together(*(engine.score(Prompt(text)) for text in TEXTS)))
        for text, stats in zip(TEXTS, found, strict=True):
            logprob, entropy = reference.stats(text)
            assert stats.logprob.dtype == stats.entropy.dtype == np.float32
            assert len(stats) == len(engine.encode(text)) == len(logprob) + 1
            assert np.isnan(stats.logprob[0])
            assert np.isnan(stats.entropy[0])
            np.testing.assert_allclose(stats.logprob[1:], logprob, atol=2e-4)
            np.testing.assert_allclose(stats.entropy[1:], entropy, atol=2e-4)

    def test_what_is_scored_since_a_token_is_what_is_scored_of_the_whole(self, engine: Engine) -> None:
        async def rest(text: str) -> tuple[Any, Any, Any]:
            n = len(engine.encode(text)) // 2
            later = await engine.score(Prompt(text, session=text), ScoringView(since=n))
            earlier = await engine.score(Prompt(text, session=text), ScoringView(since=n // 2))
            whole = await engine.score(Prompt(text, session=text))
            engine.release(text)
            return later, earlier, whole

        for later, earlier, whole in run(together(*map(rest, TEXTS))):
            n = len(whole) // 2
            assert not np.isnan(whole.entropy[1:]).any()
            for one, since in ((later, max(1, n)), (earlier, max(1, n // 2))):
                assert len(one) == len(whole)
                np.testing.assert_allclose(one.logprob[since:], whole.logprob[since:], atol=2e-4)
                np.testing.assert_allclose(one.entropy[since:], whole.entropy[since:], atol=2e-4)

    def test_a_prompt_that_grows_is_scored_as_if_read_at_once(self, engine: Engine, reference: Reference) -> None:
        async def grow(text: str) -> Any:
            half = text[: len(text) // 2]
            await engine.score(Prompt(half + " end", session=text))
            stats = await engine.score(Prompt(text, session=text))
            again = await engine.score(Prompt(text, session=text))
            answer = await engine.generate(Prompt(text, session=text), Sampling(9))
            return stats, again, answer

        for text, (stats, again, answer) in zip(TEXTS, run(together(*map(grow, TEXTS))), strict=True):
            logprob, entropy = reference.stats(text)
            for one in (stats, again):
                np.testing.assert_allclose(one.logprob[1:], logprob, atol=2e-4)
                np.testing.assert_allclose(one.entropy[1:], entropy, atol=2e-4)
            assert again.cached_tokens >= len(again) - 1 - self.block, "the same prompt was read again"
            assert answer.prompt_tokens - answer.cached_tokens <= self.block, (
                "the answer did not start from the judge's pass"
            )
            assert list(answer.token_ids) == reference.greedy(text, 9)

    def test_each_generation_ends_at_its_own_stop_string(self, engine: Engine, reference: Reference) -> None:
        ids = [reference.greedy(text, 20) for text in TEXTS]
        whole = [reference.tokenizer.decode(one, skip_special_tokens=True) for one in ids]
        # Random models generate parts of characters, which no stop string has.
        stops = [max(text[len(text) // 2 :].split("\N{REPLACEMENT CHARACTER}"), key=len)[:3] for text in whole]
        assert sum(map(bool, stops)) > len(TEXTS) // 2
        samplings = [Sampling(20, (stop,)) for stop in stops]
        found = run(together(*(engine.generate(Prompt(t), s) for t, s in zip(TEXTS, samplings, strict=True))))
        for one, stop, completion in zip(ids, stops, found, strict=True):
            n = stopped_after(reference.tokenizer, one, (stop,) if stop else ())
            text = reference.tokenizer.decode(one[:n], skip_special_tokens=True)
            assert list(completion.token_ids) == one[:n]
            assert completion.text == (text.split(stop)[0] if stop else text)
            assert completion.finish_reason == ("stop" if stop or n < 20 else "length")

    def test_max_tokens_holds_for_each_call_and_is_named(self, engine: Engine, reference: Reference) -> None:
        found = run(together(*(engine.generate(Prompt(t), Sampling(i + 1)) for i, t in enumerate(TEXTS))))
        for i, (text, completion) in enumerate(zip(TEXTS, found, strict=True)):
            ids = reference.greedy(text, i + 1)
            assert completion.new_tokens == len(ids)
            ended = len(ids) < i + 1 or ids[-1] == reference.tokenizer.eos_token_id
            assert completion.finish_reason == ("stop" if ended else "length")
        assert "length" in {completion.finish_reason for completion in found}

    def test_sampling_depends_on_prompt_and_seed_alone(self, engine: Engine) -> None:
        def sampling(seed: int) -> Sampling:
            return Sampling(16, temperature=1.5, top_k=0, top_p=1.0, seed=seed)

        crowd = run(together(*(engine.generate(Prompt(t), sampling(5)) for t in TEXTS)))
        alone = run(engine.generate(Prompt(TEXTS[3]), sampling(5)))
        other = run(engine.generate(Prompt(TEXTS[3]), sampling(6)))
        assert crowd[3].token_ids == alone.token_ids
        assert other.token_ids != alone.token_ids

    def test_a_call_that_exceeds_the_window_is_refused(self, engine: Engine) -> None:
        long = Prompt("word " * (engine.window + 1))
        with pytest.raises(ContextError, match="window"):
            run(engine.generate(long, Sampling(1)))
        with pytest.raises(ContextError, match="window"):
            run(engine.score(long))
        with pytest.raises(ContextError, match="max_gen_toks"):
            run(engine.generate(Prompt("x"), Sampling(engine.window + 1)))
        assert run(engine.generate(Prompt("x"), Sampling(2))).new_tokens >= 1

    def test_decoded_text_has_no_special_tokens(self, engine: Engine, reference: Reference) -> None:
        ids = reference.greedy(TEXTS[0], 9)
        ids[3:3] = ids[7:7] = [reference.tokenizer.eos_token_id]
        expected = reference.tokenizer.decode(ids, skip_special_tokens=True).rstrip("\N{REPLACEMENT CHARACTER}")
        assert len(expected) > 5
        assert engine.decode(tuple(ids)) == expected

    def test_a_cancelled_call_leaves_the_engine_working(self, engine: Engine, reference: Reference) -> None:
        async def cancel_some() -> tuple[list[int], list[int]]:
            before = engine.work.decode_tokens
            first = await engine.generate(Prompt(TEXTS[0]), Sampling(30))
            own = engine.work.decode_tokens - before
            tasks = [asyncio.ensure_future(engine.generate(Prompt(t), Sampling(200))) for t in TEXTS]
            await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            before = engine.work.decode_tokens
            again = await engine.generate(Prompt(TEXTS[0]), Sampling(30))
            assert engine.work.decode_tokens - before <= own + len(TEXTS), "cancelled calls were computed further"
            return list(first.token_ids), list(again.token_ids)

        assert run(cancel_some()) == (reference.greedy(TEXTS[0], 30),) * 2

    def test_reported_tokens_are_the_beginning_of_the_result(self, engine: Engine) -> None:
        samplings = [
            Sampling(24),
            Sampling(24, return_token_stats=True, max_entropy=4.0),
            Sampling(24, temperature=1.2, top_k=0, top_p=1.0, seed=3),
            Sampling(24, ("e", " a")),
        ]
        for sampling in samplings:
            plain = run(together(*(engine.generate(Prompt(text), sampling) for text in TEXTS)))
            calls, found = run(together_reported(engine, [Prompt(text) for text in TEXTS], sampling))
            assert [one.token_ids for one in found] == [one.token_ids for one in plain]
            assert [(one.text, one.finish_reason) for one in found] == [(one.text, one.finish_reason) for one in plain]
            for reported, completion in zip(calls, found, strict=True):
                ids = tuple(token for new in reported for token in new)
                assert ids == completion.token_ids[: len(ids)]
                for n in range(len(ids) + 1):
                    assert completion.text.startswith(engine.settled_text(ids[:n], sampling.stop))
            assert sampling != samplings[0] or max(map(len, calls)) > 2, "nothing was reported while it was generated"

    def test_a_call_that_goes_on_reports_its_own_tokens(self, engine: Engine, reference: Reference) -> None:
        ids = tuple(reference.greedy(TEXTS[0], 20))
        for start in (1, 7):
            prompt = Prompt(TEXTS[0], ids[:start], "growing", 20)
            (reported,), (found,) = run(together_reported(engine, [prompt], Sampling(12)))
            joined = tuple(token for new in reported for token in new)
            assert joined
            assert joined == found.token_ids[: len(joined)] == ids[start : start + len(joined)]
            engine.release("growing")

    def test_a_cancelled_call_reports_nothing_more(self, engine: Engine) -> None:
        async def cancel() -> None:
            begun, reported = asyncio.Event(), list[tuple[int, ...]]()

            def on_tokens(new: tuple[int, ...]) -> None:
                reported.append(new)
                begun.set()

            prompts = (Prompt(text, on_tokens=on_tokens) for text in TEXTS)
            tasks = [asyncio.ensure_future(engine.generate(prompt, Sampling(200))) for prompt in prompts]
            await begun.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            n = len(reported)
            assert any(task.cancelled() for task in tasks)
            await engine.generate(Prompt("x"), Sampling(20))
            assert len(reported) == n

        run(cancel())


async def together_reported(
    engine: Engine, prompts: list[Prompt], sampling: Sampling
) -> tuple[list[list[tuple[int, ...]]], list[Completion]]:
    """What each call reports, and what it returns; each report comes in the event loop of the call, before its end."""
    loop, calls, ended = asyncio.get_running_loop(), [list[tuple[int, ...]]() for _ in prompts], set[int]()
    right: list[bool] = []

    async def call(i: int) -> Completion:
        def on_tokens(new: tuple[int, ...]) -> None:
            right.append(asyncio.get_running_loop() is loop and i not in ended and len(new) > 0)
            calls[i].append(new)

        completion = await engine.generate(replace(prompts[i], on_tokens=on_tokens), sampling)
        ended.add(i)
        return completion

    found = list(await asyncio.gather(*map(call, range(len(prompts)))))
    assert all(right)
    return calls, found


def stopped_after(tokenizer: PreTrainedTokenizerBase, ids: list[int], stop: Any, think_end: str | None = None) -> int:
    """Number of tokens after which the stop rule ends a generation: a search of the whole text after each token."""
    for n in range(1, len(ids) + 1):
        _, ended, text = tokenizer.decode(ids[:n]).rpartition(think_end or "\0")
        if (ended or think_end is None) and any(word in (text.lstrip() if ended else text) for word in stop):
            return n
    return len(ids)


SCRIPT = "Été 1. 答案是 42。\n\nIt takes 3 coins 🙂, not 4.\n\nEND"
THOUGHT = "Let me see. 40\n\nminus 3。\n\nSo</think>\n\n \n\nÉté: 37。\n\nDone"
STOPS: list[tuple[str, ...]] = [
    *((word,) for word in ("é", "。", "答案", "🙂", "\n\n", "É", "是 4", "coins 🙂", "END", "</s>")),
    ("not", "。"),
    ("absent",),
]


class StopConformance:
    """The stop rule, on models that generate `SCRIPT` and `THOUGHT`.

    A subclass needs the fixtures `scripted`, an engine on the model of `SCRIPT` (`tiny.save_script`), and `thinking`,
    one on that of `THOUGHT` with think_end_token=</think>, and sets `tokenizer`.
    """

    tokenizer: PreTrainedTokenizerBase

    def test_a_stop_string_in_any_script_ends_the_generation(self, scripted: Engine) -> None:
        ids = [*self.tokenizer(SCRIPT).input_ids, self.tokenizer.eos_token_id]
        assert len(self.tokenizer("é答🙂").input_ids) == 9, "these characters have several tokens each"
        found = run(together(*(scripted.generate(Prompt("x"), Sampling(99, stop)) for stop in STOPS)))
        for stop, completion in zip(STOPS, found, strict=True):
            assert list(completion.token_ids) == ids[: stopped_after(self.tokenizer, ids, stop)], stop
            assert completion.text == min((SCRIPT.split(word)[0] for word in stop), key=len)
            assert completion.finish_reason == "stop"

    def test_a_stop_string_may_begin_in_an_earlier_call(self, scripted: Engine) -> None:
        ids = [*self.tokenizer(SCRIPT).input_ids, self.tokenizer.eos_token_id]

        async def twice(stop: tuple[str, ...], first: int) -> None:
            n = stopped_after(self.tokenizer, ids, stop)
            one = await scripted.generate(Prompt("x"), Sampling(min(first, n), stop))
            if one.finish_reason == "length":
                two = await scripted.generate(Prompt("x", one.token_ids), Sampling(99, stop))
                assert list(one.token_ids + two.token_ids) == ids[:n], (stop, first)
                assert two.finish_reason == "stop"
                whole = scripted.answer_text(one.token_ids + two.token_ids, stop)
                assert whole == min((SCRIPT.split(word)[0] for word in stop), key=len)

        run(together(*(twice(stop, first) for stop in STOPS for first in range(1, len(ids), 2))))

    def test_no_beginning_of_a_stop_string_is_settled(self, scripted: Engine) -> None:
        ids = (*self.tokenizer(SCRIPT).input_ids, self.tokenizer.eos_token_id)
        for stop in STOPS:
            n = stopped_after(self.tokenizer, list(ids), stop)
            whole = scripted.answer_text(ids[:n], stop)
            grown = [scripted.settled_text(ids[:i], stop) for i in range(n + 1)]
            assert all(whole.startswith(text) for text in grown), stop
            assert grown == sorted(grown, key=len)
            longest = whole if n < len(ids) else whole[: -max(map(len, stop))]
            assert len(grown[-2]) >= len(longest) - 5, "hardly anything was settled"

    def test_nothing_is_settled_of_a_thought(self, thinking: Engine) -> None:
        ids = (*self.tokenizer(THOUGHT).input_ids, self.tokenizer.eos_token_id)
        for stop in (("\n\n",), ("。",), ("see",)):
            n = stopped_after(self.tokenizer, list(ids), stop, "</think>")
            whole = thinking.answer_text(ids[:n], stop)
            grown = [thinking.settled_text(ids[:i], stop) for i in range(n + 1)]
            assert all(whole.startswith(text) for text in grown)
            assert "Été" in grown
            assert not any(grown[: ids.index(self.tokenizer("É").input_ids[0])])

    def test_a_stop_string_in_the_thinking_ends_nothing(self, thinking: Engine) -> None:
        ids = [*self.tokenizer(THOUGHT).input_ids, self.tokenizer.eos_token_id]

        async def twice(first: int) -> None:
            for stop, text in ((("\n\n",), "Été: 37。"), (("。",), "Été: 37"), (("see",), "Été: 37。\n\nDone")):
                n = stopped_after(self.tokenizer, ids, stop, "</think>")
                one = await thinking.generate(Prompt("x"), Sampling(min(first, n), stop))
                assert list(one.token_ids) == ids[: min(first, n)]
                if n <= first:
                    assert (one.text, one.finish_reason) == (text, "stop")
                else:
                    two = await thinking.generate(Prompt("x", one.token_ids), Sampling(99, stop))
                    assert list(two.token_ids) == ids[first:n], "the second call did not end where it should"
                    assert two.finish_reason == "stop"
                    assert thinking.answer_text(one.token_ids + two.token_ids, stop) == text

        run(together(*(twice(first) for first in range(1, len(ids), 3))))
