"""The engine for vLLM: the contract, agreement with transformers, and no process left behind."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from packaging.version import Version
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from engines.conformance import SCRIPT, TEXTS, THOUGHT, EngineConformance, Reference, StopConformance, run, together
from engines.vllm.vllm_server import CPU, INSTALLED
from lm_eval_tandem import pair
from lm_eval_tandem.engines import Engine, Prompt, Sampling, ScoringView
from lm_eval_tandem.engines.entropy import entropy_bounds
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.errors import EngineError
from lm_eval_tandem.judge.features import features
from lm_eval_tandem.pair import problems

pytestmark = pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed; `make vllm` runs these tests with it")

SMALL: dict[str, Any] = {"dtype": "float32", "kv_cache_memory_bytes": 2**26}


def opened(folder: Path, **arguments: Any) -> Any:
    from lm_eval_tandem.engines.vllm.engine import VLLMEngine

    return VLLMEngine({"pretrained": str(folder), **SMALL, **arguments})


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """The bundled intern; starting vLLM takes so long that all tests of a module share it."""
    engine = opened(pair.INTERN)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def mentor() -> Iterator[Any]:
    engine = opened(pair.MENTOR)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference() -> Reference:
    model = AutoModelForCausalLM.from_pretrained(pair.INTERN, dtype=torch.float32).eval()
    return Reference(model, AutoTokenizer.from_pretrained(pair.INTERN))


def transformers_engine(folder: Path) -> HFEngine:
    return HFEngine({"pretrained": str(folder), "dtype": "float32", "device": "cpu", "batch_size": 32})


class TestVLLMEngine(EngineConformance):
    """The contract of every engine, and what this engine promises beyond it."""

    block = 32
    """Of vLLM's prefix cache, as this engine sets it on a CPU."""

    def test_each_call_reads_at_most_one_known_block_again(self, engine: Any) -> None:
        async def question(text: str) -> None:
            for size in (len(text) // 2, len(text)):
                await engine.score(Prompt(text[:size], session=text))
            await engine.generate(Prompt(text, session=text), Sampling(6))
            engine.release(text)

        before = engine.work.recomputed_tokens
        long = [" ".join([*TEXTS, str(i)]) for i in range(5)]
        run(together(*map(question, long)))
        assert engine.work.recomputed_tokens - before <= 2 * self.block * len(long)
        assert engine.work.recomputed_tokens - before > 0, "whole blocks are read, so some tokens are read again"
        assert not set(long) & set(engine._sessions)

    def test_a_text_that_grows_in_an_open_request_is_read_once(self, engine: Any) -> None:
        """With and without open requests, the text is that of one uninterrupted call.

        Before 0.31, vLLM does not keep to the calls' own lengths, so that no request stays open.
        """
        keeps_lengths = Version(version("vllm")) >= Version("0.31")
        whole = run(together(*(engine.generate(Prompt(text), Sampling(40)) for text in TEXTS)))

        async def grow(text: str, name: str) -> list[Any]:
            ids: tuple[int, ...] = ()
            found = []
            for size in (7, 9, 24):
                found.append(await engine.generate(Prompt(text, ids, name, 40 - len(ids)), Sampling(size)))
                ids += found[-1].token_ids
                if found[-1].finish_reason == "stop":
                    break
            engine.release(name)
            return found

        for max_open in (engine.max_concurrency, 0):
            engine._open_requests._max_open = max_open
            before = engine.work.recomputed_tokens
            stages = run(together(*(grow(text, f"grow {max_open} {i}") for i, text in enumerate(TEXTS))))
            is_open = max_open > 0 and keeps_lengths
            assert engine._open_requests._max_open == (max_open if is_open else 0)
            assert (engine.work.recomputed_tokens == before) == is_open
            for found, full in zip(stages, whole, strict=True):
                assert sum((part.token_ids for part in found), ()) == full.token_ids
                assert found[-1].finish_reason == full.finish_reason
                if is_open:
                    assert all(part.prompt_tokens - part.cached_tokens == 1 for part in found[1:])
            engine._open_requests._max_open = engine.max_concurrency // 2
        assert not engine._open_requests._open

    def test_an_abandoned_open_request_is_ended(self, engine: Any) -> None:
        async def given_up() -> None:
            await engine.generate(Prompt(TEXTS[0], (), "kept", 200), Sampling(5))
            call = asyncio.ensure_future(engine.generate(Prompt(TEXTS[0], (), "cut", 300), Sampling(290)))
            await asyncio.sleep(0.01)
            assert call.cancel()
            with suppress(asyncio.CancelledError):
                await call
            # Another text under the same name is another request.
            await engine.generate(Prompt(TEXTS[2], (), "kept", 200), Sampling(5))
            engine.release("kept")

        run(given_up())
        assert not engine._open_requests._open
        deadline = time.monotonic() + 30
        while engine._async_llm.llm.output_processor.has_unfinished_requests():
            assert time.monotonic() < deadline, "a request stayed open"
            time.sleep(0.1)

    def test_prompts_that_diverge_anywhere_are_scored_exactly(self, engine: Any, reference: Reference) -> None:
        """Also at the end of a block, where the cache holds no statistics of the next token."""
        ids = engine.encode(" ".join(TEXTS))[:70]

        async def part(n: int) -> Any:
            name = f"part {n}"
            await engine.score(Prompt("", tuple(ids), session=name))
            return await engine.score(Prompt("", (*ids[:n], 40, *ids[n:], 41), session=name))

        # An empty text is one token.
        for n, stats in zip(range(28, 68), run(together(*map(part, range(28, 68)))), strict=True):
            whole = [*engine.encode(""), *ids[:n], 40, *ids[n:], 41]
            with torch.inference_mode():
                log_p = torch.log_softmax(reference.model(torch.tensor([whole])).logits[0, :-1].double(), -1)
            expected = log_p.gather(1, torch.tensor(whole)[1:, None])[:, 0].numpy()
            np.testing.assert_allclose(stats.logprob[1:], expected, atol=2e-4)
            np.testing.assert_allclose(stats.entropy[1:], -(log_p.exp() * log_p).sum(-1).numpy(), atol=2e-4)

    def test_hidden_states_are_refused(self, engine: Any) -> None:
        with pytest.raises(EngineError, match=r"reports no hidden states .* intern_backend=hf"):
            run(engine.score(Prompt("x"), ScoringView(hidden=True)))

    def test_another_session_s_cache_is_not_used_for_scores(self, engine: Any, reference: Reference) -> None:
        async def twice() -> Any:
            text = " ".join(reversed(TEXTS))
            await engine.score(Prompt(text, session="first"))
            await engine.score(Prompt(TEXTS[0], session="second"))
            return text, await engine.score(Prompt(text, session="second"))

        text, stats = run(twice())
        logprob, entropy = reference.stats(text)
        np.testing.assert_allclose(stats.logprob[1:], logprob, atol=2e-4)
        np.testing.assert_allclose(stats.entropy[1:], entropy, atol=2e-4)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    engine = opened(tiny.save_script(tmp_path_factory.mktemp("script"), SCRIPT))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    engine = opened(tiny.save_script(tmp_path_factory.mktemp("thought"), THOUGHT), think_end_token="</think>")
    yield engine
    engine.close()


class TestStopRule(StopConformance):
    """The stop rule of every engine."""

    tokenizer = AutoTokenizer.from_pretrained(pair.INTERN)


def questions(n: int) -> list[str]:
    return [str(row["question"]) for domain in ("math", "code") for row in problems.rows(domain, "test", n // 2)]


def test_the_bundled_pair_has_the_tokens_and_features_of_transformers(engine: Any, mentor: Any) -> None:
    """200 questions: insights of 40 tokens, the judge's features at every effort, the answer."""
    pairs: list[tuple[Engine, Engine]] = [
        (mentor, engine),
        (transformers_engine(pair.MENTOR), transformers_engine(pair.INTERN)),
    ]
    texts = questions(200)

    async def walk(writer: Engine, reader: Engine, text: str) -> tuple[list[int], list[Any], list[int]]:
        ids: tuple[int, ...] = ()
        read, found = text + " Steps:", []
        for stage, effort in enumerate((0, 18, 24, 40)):
            if effort:
                prompt = Prompt(text + " Insights:", ids, text)
                ids += (await writer.generate(prompt, Sampling(effort - len(ids)))).token_ids
                read = f"{text} Insights:{writer.decode(ids)} Steps:"
            found.append(features(await reader.score(Prompt(read, session=text)), stage))
        answer = await reader.generate(Prompt(read, session=text), Sampling(60))
        writer.release(text)
        reader.release(text)
        return list(ids), found, list(answer.token_ids)

    ours, theirs = (run(together(*(walk(*both, text) for text in texts))) for both in pairs)
    for one in pairs[1]:
        one.close()
    assert [walked[0] for walked in ours] == [walked[0] for walked in theirs]
    assert [walked[2] for walked in ours] == [walked[2] for walked in theirs]
    np.testing.assert_allclose(
        np.array([walked[1] for walked in ours]), np.array([walked[1] for walked in theirs]), rtol=1e-3, atol=1e-5
    )


def test_likelihoods_and_chats_are_those_of_model_hf(engine: Any) -> None:
    hf = HFLM(pretrained=str(pair.INTERN), dtype="float32", device="cpu", batch_size=4)
    requests = [
        Instance("loglikelihood", {}, (text, more), i)
        for i, (text, more) in enumerate([(TEXTS[0], " 2) sells"), (TEXTS[2], " Steps: 1)"), ("x", " Answer: 4")])
    ]
    rolling = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(TEXTS)]
    for ours, theirs in zip(engine.lm.loglikelihood(requests), hf.loglikelihood(requests), strict=True):
        assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
        assert ours[1] == theirs[1]
    assert engine.lm.loglikelihood_rolling(rolling) == pytest.approx(hf.loglikelihood_rolling(rolling), rel=1e-4)
    messages = (("user", TEXTS[0]),)
    assert engine.render(messages) == hf.apply_chat_template([{"role": "user", "content": TEXTS[0]}])
    assert engine.parameters == sum(parameter.numel() for parameter in hf.model.parameters())


def top(reference: Reference, text: str, k: int) -> Any:
    ids = torch.tensor([reference.tokenizer(text).input_ids])
    with torch.inference_mode():
        return torch.log_softmax(reference.model(ids).logits[0, :-1].double(), -1).topk(k).values.numpy()


@pytest.mark.slow
def test_an_estimated_entropy_is_labelled_and_follows_from_the_most_likely_tokens(reference: Reference) -> None:
    engine = opened(pair.INTERN, entropy="topk:30")
    found = run(together(*(engine.score(Prompt(text)) for text in TEXTS)))
    written = run(engine.generate(Prompt(TEXTS[0]), Sampling(6, return_token_stats=True)))
    assert engine.identity["entropy"] == "topk:30"
    engine.close()
    for text, stats in zip(TEXTS, found, strict=True):
        np.testing.assert_allclose(stats.logprob[1:], reference.stats(text)[0], atol=2e-4)
        least, most = entropy_bounds(top(reference, text, 30), len(reference.tokenizer))
        np.testing.assert_allclose(stats.entropy[1:], (least + most) / 2, atol=2e-3)
    unsure = written.entropy > 0
    expected = reference.stats(TEXTS[0], written.token_ids)[0][-6:]
    np.testing.assert_allclose(written.logprob[unsure], expected[unsure], atol=2e-4)


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="could not be loaded by vLLM"):
        opened(tmp_path)


def test_arguments_that_vllm_does_not_take_together_are_one_sentence() -> None:
    with pytest.raises(EngineError, match="worker_extension_cls"):
        opened(pair.INTERN, worker_extension_cls="a.B")
    with pytest.raises(EngineError, match=r"max_model_len \(100000\)"):
        opened(pair.INTERN, max_model_len=100_000)


def test_wrong_entropies_are_refused_by_measuring_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A vLLM that is newer than those tested is tried, with a warning; its entropies are compared with a reference."""
    from lm_eval_tandem.engines.vllm import async_llm

    monkeypatch.setattr(async_llm, "WORKER_EXTENSION", "engines.vllm.wrong_workers.WrongWorker")
    monkeypatch.setattr(async_llm, "VERSION", "99.1+cpu")
    engine = opened(pair.INTERN)
    found = {}
    for what in ("bits", "of the likely", "none", "right"):
        engine._async_llm.call_workers("tandem_report", what)
        engine.__dict__.pop("cannot_score", None)
        found[what] = engine.cannot_score
    engine.close()
    print(found)
    assert found.pop("right") == ""
    assert all(sentence.endswith("or intern_entropy=topk:20 for estimates.") for sentence in found.values())
    assert "(its workers report none)" in found.pop("none")
    assert all("nats where its log-probabilities over the whole vocabulary give" in one for one in found.values())
    assert ["99.1+cpu is newer than 0.32" in record.getMessage() for record in caplog.records].count(True) == 1


def test_the_command_line_gives_what_the_transformers_backend_gives(tmp_path: Path) -> None:
    """Both roles in vLLM: two engines in one process, each with its own cache."""
    both: dict[str, Any] = {}
    for backend, given in (("hf", ""), ("vllm", ",kv_cache_memory_bytes=67108864")):
        folder = tmp_path / backend
        command = [sys.executable, "-m", "lm_eval_tandem", "--model", "tandem", "--tasks", "tandem_pair_math"]
        command += ["--limit", "40", "--batch_size", "32", "--output_path", str(folder), "--log_samples"]
        arguments = (
            f"backend={backend},dtype=float32,policy=cascade,record_features=True,ledger={folder}/l.jsonl{given}"
        )
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        done = subprocess.run(
            [*command, "--model_args", arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        records = [json.loads(line) for line in (folder / "l.jsonl").read_text().splitlines()]
        (file,) = folder.rglob("samples_*.jsonl")
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        (file,) = folder.rglob("results_*.json")
        both[backend] = {
            "answers": {sample["doc_id"]: sample["resps"] for sample in samples},
            "stages": {one["doc_id"]: one["stages"] for one in records if "doc_id" in one},
            "description": json.loads(file.read_text())["config"]["tandem"],
        }
    hf, vllm = both["hf"], both["vllm"]
    assert vllm["answers"] == hf["answers"]
    assert len(vllm["stages"]) == 40
    for doc, stages in hf["stages"].items():
        ours = [stage["features"] for stage in vllm["stages"][doc]]
        np.testing.assert_allclose(ours, [stage["features"] for stage in stages], rtol=1e-3, atol=1e-5)
    assert vllm["description"]["mentor"]["engine"] == vllm["description"]["intern"]["engine"] == "vllm"
    assert vllm["description"]["intern"]["parameters"] == hf["description"]["intern"]["parameters"]
    assert 0 < vllm["description"]["totals"]["judge_share"] < 1


def test_a_dead_engine_fails_its_questions(mentor: Any) -> None:
    """The last test of the mentor's engine."""

    async def ask() -> Any:
        calls = [asyncio.ensure_future(mentor.generate(Prompt(text), Sampling(400))) for text in TEXTS[:4]]
        await asyncio.sleep(0.05)
        for process in mentor._async_llm.llm.engine_core.resources.engine_manager.processes:
            process.kill()
        return await asyncio.wait_for(asyncio.gather(*calls), 120)

    with pytest.raises(EngineError, match="has ended"):
        run(ask())
    with pytest.raises(EngineError, match="has ended"):
        run(mentor.score(Prompt(TEXTS[0])))


def processes(parent: int, name: str) -> list[psutil.Process]:
    return [one for one in psutil.Process(parent).children(recursive=True) if name in " ".join(one.cmdline())]


PROGRAM = """
    import asyncio, os, signal, sys
    from lm_eval_tandem import pair
    from lm_eval_tandem.engines import Prompt, Sampling
    from lm_eval_tandem.engines.vllm.engine import VLLMEngine

    if __name__ == "__main__":
        engine = VLLMEngine({"pretrained": str(pair.INTERN), "dtype": "float32", "kv_cache_memory_bytes": 2**26})
        asyncio.run(engine.generate(Prompt("x"), Sampling(2)))
        print("ready", flush=True)
        {ending}
"""


@pytest.mark.parametrize(
    "ending", ["os.kill(os.getpid(), signal.SIGKILL)", pytest.param("pass", marks=pytest.mark.slow)]
)
def test_nothing_is_left_behind(tmp_path: Path, ending: str) -> None:
    """Neither after a killed process nor after one that never closed its engine."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM).replace("{ending}", ending))
    environment = {**os.environ, **CPU, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (tmp_path / "log").open("wb") as log:
        started = subprocess.Popen([sys.executable, str(program)], stdout=log, stderr=log, env=environment)
    children: dict[int, psutil.Process] = {}

    def ended() -> bool:
        with suppress(psutil.NoSuchProcess):  # it ended in the meantime
            children.update((one.pid, one) for one in processes(started.pid, "VLLM"))
        return started.poll() is not None

    until(ended, 300)
    log_text = (tmp_path / "log").read_text(errors="replace")
    assert "ready" in log_text, log_text
    assert children, log_text
    until(
        lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in children.values()),
        60,
    )
    if ending == "pass":
        assert "EngineDeadError" not in log_text


def until(reached: Callable[[], bool], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < ends, "it took too long"
        time.sleep(0.2)
