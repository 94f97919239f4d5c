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
