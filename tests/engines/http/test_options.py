"""The options of a model behind a server: what a table of them needs."""

from __future__ import annotations

import pytest

from lm_eval_tandem.engines.http.options import Options


def test_every_option_is_described_in_one_sentence() -> None:
    rows = Options.described()
    assert {name for name, *_ in rows} == Options.names()
    for name, kind, _, description in rows:
        assert kind in ("str", "int", "float", "bool", "JSON object"), name
        assert description[0].isupper(), name
        assert description.endswith("."), name
        assert ". " not in description, f"{name} is described in more than one sentence"


@pytest.mark.parametrize(("name", "kind", "default"), [("retries", "int", 12), ("extra_body", "JSON object", {})])
def test_type_and_default_are_those_of_the_field(name: str, kind: str, default: object) -> None:
    (row,) = [row for row in Options.described() if row[0] == name]
    assert row[1:3] == (kind, default)
    assert getattr(Options("model"), name) == default


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("concurrency", "1e3", 1000),
        ("retries", 0, 0),
        ("timeout", "0.5", 0.5),
        ("total_timeout", "inf", float("inf")),
        ("give_up", 0, 0.0),
        ("parameters", "32e9", 32e9),
        ("extra_body", '{"top_k": 20}', {"top_k": 20}),
        ("extra_body", {"top_k": 20}, {"top_k": 20}),
    ],
)
def test_allowed_values_are_converted(name: str, given: object, value: object) -> None:
    read = getattr(Options.read("model", {name: given}), name)
    assert (read, type(read)) == (value, type(value))


def test_prices_of_0_are_prices() -> None:
    prices = Options.read("model", {"price_input": 0, "price_cached": 0, "price_output": 2}).prices
    assert prices is not None
    assert (prices.input, prices.cached, prices.output) == (0, 0, 2)


@pytest.mark.parametrize(
    ("url", "given", "takes"),
    [
        ("https://api.openai.com/v1", None, True),
        ("https://eu.api.openai.com/v1", None, True),
        ("http://api.openai.com/v1", None, False),
        ("https://api.openai.com.example.org/v1", None, False),
        ("https://example.org/api.openai.com/v1", None, False),
        ("http://127.0.0.1:8000/v1", None, False),
        ("http://127.0.0.1:8000/v1", "OPENAI_API_KEY", True),
    ],
)
def test_the_key_goes_to_openai_or_where_it_is_named(
    url: str, given: str | None, takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    options = Options.read("model", {"base_url": url, "api_key_env": given})
    assert options.takes_key(url) is takes
    assert options.key() == ("sk-1" if takes else "")
