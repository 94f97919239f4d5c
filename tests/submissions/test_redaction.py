"""Settings go out by allowlist, and questions and answers without keys and places of a machine, otherwise unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm_eval_tandem.submissions.redaction import Redaction, own_words, short


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/alice/models/small.gguf", "small.gguf"),
        ("C:\\Users\\alice\\models\\small.gguf", "small.gguf"),
        ("~/small", "small"),
        ("/data/al ice/small model", "small model"),
        ("models/small.gguf", "small.gguf"),
        ("/home/alice", None),
        ("/var/home/alice", None),
        ("C:\\Users\\alice", None),
        ("http://gpu17:8000/v1", None),
        ("hf_abcdefghijklmnop1234", None),
        ("two\nlines", None),
        ("probe-13+stage/1", "probe-13+stage/1"),
        ("Q4_K - Medium", "Q4_K - Medium"),
        ("2.13.0+cpu", "2.13.0+cpu"),
        (0.1 + 0.2, "0.3"),
        ([0.5, 0.25], "0.5:0.25"),
        (["a", "http://b"], None),
        (1543714304, "1543714304"),
    ],
)
def test_a_setting_is_a_name_a_number_or_the_last_part_of_a_path(value: object, expected: str | None) -> None:
    assert short(value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see /home/alice/runs/log.txt.", "see …/log.txt."),
        ("in C:\\Users\\alice\\y, or", "in …/y, or"),
        ("/root/.cache/x and ~/notes/y", "…/x and …/y"),
        ("my home is /home/alice", "my home is …/"),
        ("key sk-abcdefghijklmnop here", "key [key] here"),
        ("hf_abcdefghijklmnop1234", "[key]"),
        ("Bearer abcdefgh12345678901234", "Bearer [key]"),
        ("api_key: abc123def456ghi789jkl", "api_key: [key]"),
        ("https://alice:pass@example.org/x", "https://example.org/x"),
        ("on gpu17-lab it ran", "on [host] it ran"),
        ("/srv/alice/work/log.txt", "…/log.txt"),
        ("open file:///home/alice/x/y.txt", "open file://…/y.txt"),
        ("/var/home/alice/x.txt", "…/x.txt"),
        ("my home is /export/home/alice", "my home is …/"),
        ("/mnt/c/Users/alice/x.txt", "…/x.txt"),
        ("a\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----\nb", "a\n[key]\nb"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl", "[key]"),
    ],
)
def test_keys_and_places_of_a_machine_are_replaced(text: str, expected: str) -> None:
    redaction = Redaction(own=["gpu17-lab", "/srv/alice"])
    assert redaction({"deep": [text]}) == {"deep": [expected]}
    assert redaction.replaced == 1


@pytest.mark.parametrize(
    "text",
    [
        "The square root of 2/3 is about 0.8; ~5/6 of it is \\frac{2}{3}.",
        "$x =~\\frac12$, and https://example.org/home/page.html explains it.",
        "token = tokenizer.encode(text); password: swordfish",
        "#!/usr/bin/env python\nfrom pathlib import Path",
        "sk-2 and hf_ are short; a risk-free rate of 3 %",
        "import torch  # see /usr/share/doc",
        "/var/log/syslog, /data/home.csv and https://example.org/var/home/page",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    redaction = Redaction(own=["gpu17-lab", "/srv/alice"])
    assert redaction.text(text) == text
    assert redaction.replaced == 0


def test_the_folders_of_this_machine_are_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path) in own_words()
    assert Redaction().text(f"wrote {tmp_path}/run/results.json") == "wrote …/results.json"
