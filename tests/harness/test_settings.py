"""Every wrong argument is one sentence that names what was given and what is allowed, before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lm_eval_tandem import pair
from lm_eval_tandem.accounting import Prices
from lm_eval_tandem.cascade.prompts import GPRA
from lm_eval_tandem.engines import registry
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.harness.settings import Settings, read_settings

ENGINE = {"pretrained", "dtype", "device", "batch_size", "peft", "enable_thinking"}
FOREIGN = {"mentor": "org/big", "intern": "org/small"}


def read(**arguments: Any) -> Settings:
    return read_settings(arguments, lambda backend: ENGINE if backend == "hf" else registry.arguments(backend))


def test_the_bundled_pair_is_the_default_with_its_own_sizes_and_classifier() -> None:
    for chosen in (read(), read(mentor="pair", intern="pair"), read(mentor=str(pair.MENTOR), intern=str(pair.INTERN))):
        assert chosen.bundled
        assert chosen.run_name == "tandem-pair-cascade"
        assert chosen.mentor is not None
        assert chosen.mentor.model == str(pair.MENTOR)
        assert list(chosen.efforts) == sorted(chosen.efforts)
        assert chosen.efforts[-1] < 100
        assert chosen.classifier is not None
        assert chosen.classifier.name == "pair"
        assert chosen.prompts.wording.request == " Insights:"


def test_a_pair_of_ones_own_gets_the_papers_sizes_and_prompts() -> None:
    chosen = read(**FOREIGN, policy="stage:2")
    assert not chosen.bundled
    assert chosen.efforts == (100, 500, 1000)
    assert chosen.prompts.wording == GPRA
    assert chosen.run_name == "tandem-big+small-stage-2"
    assert chosen.classifier is None


def test_one_bundled_model_may_stand_beside_another_and_brings_its_sizes_and_prompts(tmp_path: Path) -> None:
    chosen = read(mentor="pair", intern=str(tmp_path), policy="stage:2")
    assert chosen.mentor is not None
    assert chosen.intern is not None
    assert not chosen.bundled
    assert (chosen.mentor.model, chosen.mentor.label) == (str(pair.MENTOR), "pair/mentor")
    assert chosen.intern.label == str(tmp_path)
    assert chosen.pair_name == f"mentor+{tmp_path.name}"
    assert chosen.efforts == read().efforts
    assert chosen.prompts == read().prompts
    assert chosen.classifier is None, "the bundled classifier knows the bundled intern alone"
    assert read(**FOREIGN, policy="stage:2", prompts="pair").prompts == read().prompts


def test_wordings_of_files_are_told_apart_in_results(tmp_path: Path) -> None:
    words = {"request": " Hints:", "open": " ", "close": " "}
    names = []
    for text in (" Hints:", " Notes:"):
        (tmp_path / "own.json").write_text(json.dumps({**words, "request": text}))
        names.append(read(prompts=str(tmp_path / "own.json")).prompts.name)
    assert names[0] != names[1]
    assert all(name.startswith("own-") for name in names)
    assert (read().prompts.name, read(**FOREIGN, policy="stage:2").prompts.name) == ("pair", "gpra")


def test_engine_arguments_go_to_both_roles_or_to_one() -> None:
    chosen = read(**FOREIGN, dtype="float16", intern_dtype="float32", mentor_peft="adapter", batch_size=8)
    assert chosen.mentor is not None
    assert chosen.intern is not None
    assert chosen.mentor.arguments == {"dtype": "float16", "peft": "adapter", "batch_size": 8}
    assert chosen.intern.arguments == {"dtype": "float32", "batch_size": 8}


def test_a_gguf_file_is_run_by_llamacpp_unless_another_backend_is_given(tmp_path: Path) -> None:
    big = tmp_path / "big.gguf"
    big.touch()
    chosen = read(mentor=str(big), intern="org/small", policy="stage:1", mentor_threads=1, intern_dtype="float32")
    assert chosen.mentor is not None
    assert chosen.intern is not None
    assert (chosen.mentor.backend, chosen.mentor.arguments) == ("llamacpp", {"threads": 1})
    assert (chosen.intern.backend, chosen.intern.arguments) == ("hf", {"dtype": "float32"})
    served = {"mentor": "far/away.gguf", "mentor_base_url": "http://127.0.0.1:8080", "intern": "org/small"}
    assert read(**served, policy="stage:1").roles["mentor"].backend == "llamacpp"  # type: ignore[union-attr]


def test_zeros_are_values_and_not_defaults() -> None:
    chosen = read(mentor_price_input=0, mentor_price_output=0, seed=0, thresholds="0:0:0:0")
    assert chosen.mentor is not None
    assert chosen.mentor.prices == Prices(0.0, 0.0, 0.0)
    assert (chosen.seed, chosen.thresholds) == (0, (0.0, 0.0, 0.0, 0.0))
    assert read(batch_size="auto:4").mentor is not None


def test_a_line_break_in_what_ends_a_step_is_written_with_a_backslash() -> None:
    assert read().step_end == "\n\n"
    assert read(step_end=r"\n").step_end == read(step_end="\n").step_end == "\n"
    assert read(step_end=". ").step_end == ". "


def test_thinking_is_a_setting_of_each_role() -> None:
    chosen = read(**FOREIGN, thinking="intern")
    assert chosen.mentor is not None
    assert chosen.intern is not None
    assert chosen.mentor.arguments == {"enable_thinking": False}
    assert chosen.intern.arguments == {"enable_thinking": True}


@pytest.mark.parametrize(
    ("given", "guidance"),
    [
        ({}, "handoff"),
        ({"prompts": "gpra"}, "guided"),
        ({"insights": "cutoff"}, "guided"),
        ({"prompts": "gpra", "guidance": "handoff"}, "handoff"),
        ({"intern_backend": "openai"}, "guided"),
        ({"mentor_backend": "openai"}, "guided"),
        ({"intern": "Qwen/Qwen3-8B"}, "guided"),
        ({"mentor": "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"}, "guided"),
        ({"mentor": "Qwen/Qwen3-8B-Base"}, "guided"),
        ({"mentor": "Qwen/Qwen3-80B"}, "handoff"),
        ({"mentor": None, "intern": None}, "guided"),
        ({"policy": "intern"}, "handoff"),
    ],
)
def test_the_mentor_begins_the_answer_where_no_insights_are_asked_for(given: dict[str, Any], guidance: str) -> None:
    """Not where the paper's models, the bundled pair or a server say otherwise."""
    assert read(**{**FOREIGN, **given}).prompts.guidance == guidance


def test_a_policy_of_one_model_needs_only_that_model() -> None:
    assert read(intern="org/small", policy="intern").mentor is None
    assert read(mentor="org/big", policy="mentor").intern is None
    assert read(mentor="org/big", policy="mentor").loglikelihood == "mentor"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"mentor_token": "x"}, r"mentor_token would be printed.* HF_TOKEN"),
        ({"polcy": "cascade"}, r"'polcy' is not known to tandem; did you mean policy"),
        ({"mentor_dtpe": "float16"}, r"'mentor_dtpe' is not known.*did you mean mentor_dtype"),
        ({"pretrained": "org/x"}, r"'pretrained' is not known"),
        ({"policy": "both"}, r"policy=both is not known; use cascade, intern, mentor, stage:N with N from 0 to 3"),
        ({"policy": "stage:4"}, r"policy=stage:4 .*: N of stage:N has to be a whole number from 0 to 3, the number of"),
        ({"policy": "stage:²"}, r"policy=stage:² cannot work"),
        ({"policy": "stage"}, r"policy=stage cannot work: N of stage:N has to be"),
        ({"policy": "handoff:0"}, r"^policy=handoff:0 .*: N of handoff:N has to be a whole number of 1 or more\.$"),
        ({"policy": "budget_forcing:1.5"}, r"N of budget_forcing:N has to be a whole number of 1 or more\.$"),
        ({"policy": "steps:x"}, r"N of steps:N has to be a number of 0 or more"),
        ({"policy": "verify:10"}, r"N of verify:N has to be a whole number from 0 to 9"),
        ({"policy": "mentor:3"}, r"mentor takes no number; write policy=mentor\."),
        ({"mentor_backend": ""}, r"mentor_backend= has no value"),
        ({"classifier": ""}, r"classifier= has no value"),
        ({"store": ""}, r"store= has no value"),
        ({"store": "a/x", "ledger": "a/../a/x"}, r"store and ledger both name a/../a/x; give each a file of its own"),
        ({"efforts": []}, r"efforts= has no value"),
        ({"batch_size": 0}, r"batch_size=0 has to be a whole number from 1, or auto"),
        ({"mentor_batch_size": "²"}, r"mentor_batch_size=² has to be"),
        ({"mentor": "org/big"}, r"mentor=org/big was given without intern"),
        ({"intern": "org/small"}, r"intern=org/small was given without mentor"),
        ({"mentor": "./nowhere", "intern": "org/small"}, r"mentor=./nowhere is no folder"),
        ({"mentor": "a/big.gguf", "intern": "org/small"}, r"mentor=a/big.gguf is no file; .*mentor_base_url=http"),
        (
            {"mentor": "pair", "intern": "x", "intern_backend": "llamacpp"},
            r"intern=x is no file; backend=llamacpp takes",
        ),
        (
            {"mentor": "a/big.gguf", "intern": "org/small", "backend": "hf"},
            r"is a GGUF file; leave out backend=hf, .* mentor=a,mentor_gguf_file=big.gguf",
        ),
        ({"efforts": "100:100:500"}, r"efforts=100:100:500 has to rise"),
        ({"efforts": "0:100"}, r"efforts=0:100 has to rise"),
        ({"efforts": "a:b"}, r"efforts=a:b has to be numbers"),
        ({"thresholds": "0.5:0.5"}, r"thresholds=0.5:0.5 holds 2 values, but has to hold 4"),
        ({"thresholds": "0.5:0.5:0.5:1.5"}, r"thresholds holds 1.5, which is not from 0 to 1"),
        (
            {"thresholds": "0:0:0:0", "policy": "stage:2"},
            r"thresholds has no effect with policy=stage:2, .* it is for cascade, llm_cascade, escalate, so",
        ),
        ({"backend": "tpu"}, r"backend=tpu is not known"),
        ({"insights": "stage"}, r"insights=stage is not known; use one of cutoff, staged"),
        ({"insights": "staged"}, r"insights=staged needs a wording"),
        ({"guidance": "x"}, r"guidance=x is not known"),
        ({"thinking": "yes"}, r"thinking=yes is not known"),
        ({"thinking": "both", "enable_thinking": True}, r"were both given"),
        ({"prompts": "./none.json"}, r"prompts=none.json cannot be read"),
        ({"loglikelihood": "judge"}, r"loglikelihood=judge is not known"),
        ({"loglikelihood": "mentor", "policy": "intern"}, r"loglikelihood=mentor has no model under policy=intern"),
        ({"seed": "x"}, r"seed=x has to be a whole number"),
        ({"record_features": "perhaps"}, r"record_features=perhaps has to be True, False or answers"),
    ],
)
def test_a_wrong_argument_is_one_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence) as caught:
        read(**arguments)
    assert "\n" not in str(caught.value)


def test_a_classifier_is_a_name_or_a_folder(tmp_path: Path) -> None:
    assert read(classifier=str(tmp_path)).classifier == tmp_path
    assert read(**FOREIGN, classifier="mine").classifier == Path("mine")


@pytest.mark.parametrize("policy", ["handoff:20", "cascade", "mentor", None])
def test_an_end_of_steps_is_refused_where_a_run_has_no_steps(policy: str | None) -> None:
    given = {"step_end": ".", "policy": policy} if policy else {"step_end": "."}
    sentence = rf"^step_end has no effect with policy={policy or 'cascade'}; it is for steps:N and verify:N"
    with pytest.raises(ArgumentError, match=sentence):
        TandemLM.create_from_arg_obj(given)


@pytest.mark.parametrize("policy", ["intern", "mentor", "stage:1", "handoff:20", "steps:0.5", "cascade", "llm_cascade"])
def test_what_a_comparison_of_policies_gives_to_all_of_them_is_taken_by_each(policy: str) -> None:
    """A loop over policies has one classifier, the same efforts and the same words; a server one end of steps too."""
    read(policy=policy, classifier="pair", efforts="18:24:40", guidance="guided", prompts="pair", step_end=".")
