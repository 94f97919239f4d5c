"""Configurations in YAML: nothing in them silently becomes something else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lm_eval_tandem.engines import registry
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness.answering import AnsweringLM
from lm_eval_tandem.harness.ensemble_model import EnsembleLM
from lm_eval_tandem.harness.ensemble_settings import read_ensemble
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.harness.own_questions import read_config
from lm_eval_tandem.harness.settings import read_settings
from lm_eval_tandem.harness.yaml_file import read_yaml


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def test_numbers_with_colons_are_text_and_all_else_is_as_in_yaml(file: Path) -> None:
    file.write_text(
        "a: 1:30\nb: 40:80:160\nc: [3:1, 0.5:0.5]\nd: 12\ne: 1.5\nf: true\ng:\nh: 0x10\ni: {<<: {a: 1}, a: 2}"
    )
    wanted = {"a": "1:30", "b": "40:80:160", "c": ["3:1", "0.5:0.5"], "d": 12, "e": 1.5, "f": True, "g": None, "h": 16}
    assert read_yaml(file) == {**wanted, "i": {"a": 2}}
    file.write_text("")
    assert read_yaml(file) is None


def test_a_configuration_has_the_efforts_that_are_written_in_it(file: Path) -> None:
    file.write_text("model_args: {mentor: pair, intern: pair, efforts: 1:30, policy: stage:1}")
    assert read_settings(read_config(file)["model_args"], registry.arguments).efforts == (1, 30)


def test_an_ensemble_has_the_weights_that_are_written_in_its_file(file: Path) -> None:
    file.write_text("models: [pair/mentor, pair/intern]\naggregation: distribution\nweights: 3:1")
    assert read_ensemble({"ensemble": str(file)}, registry.arguments).options["weights"] == (3, 1)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("model_args:\n  policy: intern\n  policy: mentor", "cannot be read (line 3: policy is given twice); give"),
        ("model_args:\n  policy:", "config.yaml: policy has no value; give one, or leave the argument out for"),
        ("", "config.yaml holds no entries; give model_args with mentor, intern and policy"),
        ("[1, 2]", "config.yaml holds no entries"),
        ("model: tandem\nmodl_args: {}", "modl_args is not known (did you mean model_args?)"),
        ("model_args: {policy: intern}\ngen_kwargs: hello", "gen_kwargs is hello, which names no argument; give gen_"),
        ("model_args: intern", "model_args is intern, which names no argument; give model_args: {NAME: VALUE}."),
        ("model_args: {api_key: secret\n", "cannot be read (line 2: "),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(file: Path, content: str, sentence: str) -> None:
    file.write_text(content)
    with pytest.raises(ArgumentError, match=re.escape(sentence)) as refused:
        read_config(file)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            "aggregation: vote\naggregation: loop",
            r"^ensemble=.*config.yaml cannot be read \(line 2: aggregation is given",
        ),
        ("aggregation:\nmodels: pair", r"config.yaml: aggregation has no value; give one, or leave"),
        ("", r"^ensemble=.*config.yaml holds no arguments"),
    ],
)
def test_so_it_is_of_the_file_of_an_ensemble(file: Path, content: str, sentence: str) -> None:
    file.write_text(content)
    with pytest.raises(ArgumentError, match=sentence):
        read_ensemble({"ensemble": str(file)}, registry.arguments)


@pytest.mark.parametrize("model", [TandemLM, EnsembleLM])
def test_so_it_is_of_the_file_that_the_harness_reads(model: type[AnsweringLM]) -> None:
    with pytest.raises(ArgumentError, match=r"^model_args: store has no value; give one, or leave the argument out"):
        model.create_from_arg_obj({"mentor": "pair", "store": None})
