"""Many clients at once, some of whom hang up: every other answer is the harness's, and nothing leaks."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi", reason="the server is tested with: pip install .[server]")

from bundled import COMMON, instances
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.pair import problems
from lm_eval_tandem.server.command import BUNDLED_BATCH
from server.serving import Served, serving

CLIENTS = 64
TOKENS = 90


def ask(server: Served, number: int, question: str, hang_up: bool) -> str | None:
    """The answer to one client, streamed for every second; None to one that hangs up in the middle."""
    streams = number % 2 == 0
    body = {"model": "tandem", "prompt": question, "max_tokens": TOKENS, "stream": streams}
    connection = server.connect()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    if hang_up:
        time.sleep(0.05 * (1 + number % 7))
        connection.close()
        return None
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    assert reply.status == 200, text
    if not streams:
        return str(json.loads(text)["choices"][0]["text"])
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    return "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])


def ask_all(server: Served, questions: Sequence[str], every_tenth_hangs_up: bool) -> list[str | None]:
    """All answers, of `CLIENTS` clients at once."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [
            pool.submit(ask, server, number, question, every_tenth_hangs_up and number % 10 == 9 - number // 10 % 2)
            for number, question in enumerate(questions)
        ]
        return [one.result() for one in asked]


def check_load(questions: int) -> None:
    """Ask so many questions, and compare with the harness; print the throughput of both."""
    rows = [str(row["question"]) for row in problems.rows("math", "test", questions)]
    lm = TandemLM(**{**COMMON, "batch_size": BUNDLED_BATCH}, policy="cascade")
    expected = lm.generate_until(instances(questions), disable_tqdm=True)  # the first run pays for the warm-up
    started = time.perf_counter()
    assert lm.generate_until(instances(questions), disable_tqdm=True) == expected
    seconds = {"harness": time.perf_counter() - started}
    lm.close()
    with serving(["--max-requests", str(2 * CLIENTS)]) as server:  # those who hung up take room for a moment
        ask_all(server, rows[: max(CLIENTS, questions // 5)], every_tenth_hangs_up=True)
        server.until_idle()
        memory = server.metric("process_resident_memory_bytes")
        files = server.metric("process_open_fds")
        answers = ask_all(server, rows, every_tenth_hangs_up=True)
        server.until_idle()
        assert sum(answer is None for answer in answers) == questions // 10
        for number, answer in enumerate(answers):
            assert answer in (None, expected[number]), number
        computed = server.metric("tandem_computed_tokens_total")
        assert server.metric("process_resident_memory_bytes") < 1.1 * memory
        assert server.metric("process_open_fds") <= files + 2
        started = time.perf_counter()
        assert ask_all(server, rows, every_tenth_hangs_up=False) == expected
        seconds["server"] = time.perf_counter() - started
        assert server.metric("tandem_computed_tokens_total") > computed
        assert not [line for line in server.lines if line["status"] >= 500]
    for name, took in seconds.items():
        print(f"{name}: {questions / took:.1f} answers per second")
    print(f"server / harness: {seconds['harness'] / seconds['server']:.2f}")


def test_100_requests_of_64_clients() -> None:
    check_load(100)


@pytest.mark.slow
def test_1000_requests_of_64_clients() -> None:
    check_load(1000)
