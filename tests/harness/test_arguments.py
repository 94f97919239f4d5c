"""The table of model arguments is what is checked, what `help()` prints, and complete."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from lm_eval_tandem import cli
from lm_eval_tandem.engines import registry
from lm_eval_tandem.harness import arguments, settings
from lm_eval_tandem.harness.arguments import ARGUMENTS
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.harness.settings import read_settings


def test_every_argument_is_described_and_its_default_passes_its_own_check() -> None:
    assert len({one.name for one in ARGUMENTS}) == len(ARGUMENTS)
    for one in ARGUMENTS:
        assert one.takes, one.name
        assert one.meaning.endswith("."), one.name
        if one.default is not None:
            assert one.check(one.name, one.default) == one.default


def test_every_described_argument_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[str] = set()
    original = settings.Given.__getitem__

    def recorded(self: settings.Given, name: str) -> Any:
        used.add(name)
        return original(self, name)

    monkeypatch.setattr(settings.Given, "__getitem__", recorded)
    read_settings({}, registry.arguments)
    assert used == {one.name for one in ARGUMENTS}


def test_help_and_signature_of_the_model_are_made_from_the_table() -> None:
    parameters = inspect.signature(TandemLM).parameters
    assert list(parameters) == [*(one.name for one in ARGUMENTS), "engine_arguments"]
    text = inspect.getdoc(TandemLM)
    assert text is not None
    for one in ARGUMENTS:
        assert parameters[one.name].default == one.default
        assert f"\n{one.name}\n" in text
        assert one.meaning.split(". ")[0] in " ".join(text.split())


@pytest.mark.parametrize("options", [[], ["--markdown"]])
def test_the_command_prints_every_argument(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["arguments", *options])
    printed = capsys.readouterr().out
    start = "| `{}` |" if options else "\n{}\n"
    for one in ARGUMENTS:
        assert start.format(one.name) in f"\n{printed}"
    assert max(map(len, printed.splitlines())) <= 100 or options


@pytest.mark.parametrize(("table", "cells"), [("cascade", 4), ("policies", 2), ("openai", 4), ("llamacpp", 4)])
def test_every_row_of_a_markdown_table_has_all_cells(table: str, cells: int) -> None:
    rows = arguments.markdown(table).splitlines()
    assert len(rows) > 7
    assert {row.count("|") for row in rows} == {cells + 1}


def test_the_tables_of_policies_and_of_server_options_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["arguments", "policies"])
    assert "\nstage:N\n" in capsys.readouterr().out
    cli.main(["arguments", "openai", "--markdown"])
    assert "| `base_url` |" in capsys.readouterr().out
