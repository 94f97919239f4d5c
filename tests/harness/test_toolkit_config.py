"""Files of the authors' ensemble toolkit and of GaC: every key works, or is refused in a sentence that names it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from lm_eval_tandem.engines import registry
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness.ensemble_settings import read_ensemble
from lm_eval_tandem.harness.settings import read_settings
from lm_eval_tandem.harness.toolkit_config import arguments_of, generation_of, is_toolkit_config, run_of

FILE = Path("theirs.yaml")
LARGE, SMALL = "org/Base-7B", "org/Base-0.5B"
MODELS = [{"model": LARGE, "backend": "hf"}, {"model": SMALL, "backend": "hf"}]
LOOP = {"models": MODELS, "selection": "all", "aggregation": "loop"}


def theirs(**sections: Any) -> dict[str, Any]:
    return {"model_specs": [{"path": LARGE, "engine": "hf"}, {"path": SMALL}], **sections}


def ensemble(method: str = "loop", parameters: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return theirs(ensemble={"output_aggregation_method": method, "output_aggregation_params": parameters or {}, **more})


def spec(path: str = LARGE, **keys: Any) -> dict[str, Any]:
    return {"model_specs": [{"path": path, **keys}, {"path": SMALL}]}


def rewards(*specs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return ensemble("reward_based", **more) | {"reward_specs": list(specs)}


def gac(*models: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"CONFIG_API_SERVER": list(models), **more}


def first(**arguments: Any) -> dict[str, Any]:
    """What is expected where only the first model has other arguments."""
    return LOOP | {"models": [MODELS[0] | arguments, MODELS[1]]}


def both(**arguments: Any) -> dict[str, Any]:
    return LOOP | {"models": [model | arguments for model in MODELS]}


API = {"base_url": "https://openrouter.ai/api/v1", "api_key_env": "OPENROUTER_API_KEY"}
BEST = {"models": MODELS, "selection": "all", "aggregation": "reward_based"}
JOINT = {"models": MODELS, "selection": "all"}


@pytest.mark.parametrize(
    ("content", "arguments", "without_effect"),
    [
        (theirs(), LOOP, ""),
        (theirs(server={"host": "::", "port": 80}, model_stats=None, reward_specs=None), LOOP, "server"),
        (theirs(debug={"show_input_details": True, "save_results": True}), LOOP, "debug.save_results"),
        (theirs(debug={"show_output_details": 1, "show_attribution": 0}), LOOP, "debug.show_attribution"),
        (theirs(debug={"enable_thinking": False}), both(enable_thinking=False), ""),
        (spec(enable_thinking=True), first(enable_thinking=True), ""),
        (
            spec(enable_thinking=True, think_end_token="</think>"),
            first(enable_thinking=True, think_end_token="</think>"),
            "",
        ),
        (
            spec(enable_thinking=True) | {"debug": {"enable_thinking": False}},
            LOOP | {"models": [MODELS[0] | {"enable_thinking": True}, MODELS[1] | {"enable_thinking": False}]},
            "",
        ),
        (spec(quantization="8bit"), first(load_in_8bit=True), ""),
        (spec(quantization="4bit", device="cuda:1"), first(load_in_4bit=True, device="cuda:1"), ""),
        (spec(quantization="none", device="auto", max_memory=None), LOOP, ""),
        (spec(num_gpus=0.5, padding_side="right"), LOOP, "num_gpus"),
        (spec(num_gpus=2), first(parallelize=True), ""),
        (
            spec(max_memory={0: "10GB", 1: "10GB", "cpu": "20GB"}),
            first(parallelize=True, max_memory_per_gpu="10GB", max_cpu_memory="20GB"),
            "",
        ),
        (spec(engine="vllm", num_gpus=2), first(backend="vllm", tensor_parallel_size=2), ""),
        (spec(engine="api", device="cuda"), first(backend="openai", **API), "model_specs[0].device"),
        (
            spec("a:free:http://h:1/v1:$MY_KEY", engine="api"),
            first(backend="openai", model="a:free", base_url="http://h:1/v1", api_key_env="MY_KEY"),
            "",
        ),
        (
            spec("a:http://h/v1", engine="api") | {"engine_options": {"api": {"timeout": 60, "max_retries": 3}}},
            first(backend="openai", model="a", base_url="http://h/v1", timeout=60, retries=3),
            "",
        ),
        (
            theirs(engine_options={"hf": {"use_eager_attention": True, "low_cpu_mem": True}, "vllm": {}}),
            both(attn_implementation="eager"),
            "engine_options.hf.low_cpu_mem",
        ),
        (
            spec(quantization="none")
            | {"engine_options": {"hf": {"use_4bit": True, "use_8bit": False, "disable_device_map": True}}},
            LOOP | {"models": [MODELS[0], MODELS[1] | {"load_in_4bit": True}]},
            "disable_device_map",
        ),
        (theirs(engine_options={"vllm": {"max_model_len": 9}}), LOOP, "engine_options.vllm"),
        (
            spec(engine="vllm")
            | {
                "engine_options": {
                    "vllm": {
                        "enforce_eager": True,
                        "disable_chunked_prefill": True,
                        "max_model_len": 9,
                        "gpu_memory_utilization": 0.8,
                        "disable_sliding_window": False,
                    }
                }
            },
            first(
                backend="vllm",
                enforce_eager=True,
                enable_chunked_prefill=False,
                max_model_len=9,
                gpu_memory_utilization=0.8,
                disable_sliding_window=False,
            ),
            "",
        ),
        (
            ensemble("loop", {"max_new_tokens_per_round": 20, "max_repeat": 3, "name": "x"}, max_rounds=7),
            LOOP | {"segment_tokens": 20, "max_rounds": 7},
            "params.name",
        ),
        (ensemble("random", {"max_rounds": 9}), LOOP | {"aggregation": "random", "max_rounds": 9}, ""),
        (ensemble("loop", score_threshold=-2.0, progressive={"mode": "length"}), LOOP, "ensemble.score_threshold"),
        (ensemble(generation={"seed": 5, "extract_after": []}), LOOP | {"seed": 5}, ""),
        (
            {"model_specs": [{"path": LARGE}], "ensemble": {"max_rounds": 1}},
            {"models": MODELS[:1], "selection": "all", "aggregation": "one"},
            "ensemble.max_rounds",
        ),
        (
            ensemble(model_selection_method="model_judgment", model_selection_params={"name": "x"}),
            {"models": MODELS, "selection": "self_assessment", "aggregation": "one"},
            "model_selection_params.name",
        ),
        (
            ensemble(model_selection_method="random", model_selection_params={"model_count": 2}),
            LOOP | {"selection": "random", "count": 2},
            "",
        ),
        (
            ensemble(model_selection_method="zscore", model_selection_params={"model_count": -1})
            | {"model_stats": {"stats_file": "reference.json"}},
            LOOP | {"selection": "zscore", "reference": "reference.json"},
            "",
        ),
        (theirs(model_stats={"stats": {}}), LOOP, "model_stats"),
        (
            rewards({"path": SMALL, "engine": "hf_gen", "weight": 0.2}),
            BEST | {"scorer": "logprob:Base-0.5B"},
            "",
        ),
        (
            rewards({"path": "org/prm", "engine": "hf_rm", "device": "cuda:0"}, score_threshold=5),
            BEST | {"scorer": "org/prm", "score_threshold": 0.5},
            "reward_specs[0].device",
        ),
        (
            ensemble(
                "reward_based",
                {
                    "exclude_self_scoring": True,
                    "score_threshold": -2,
                    "reward_specs": [{"path": "http://h/score", "engine": "api"}],
                },
            ),
            BEST | {"scorer": "http://h/score", "score_threshold": -2.0},
            "exclude_self_scoring",
        ),
        (theirs(reward_specs=[{"path": "org/prm", "engine": "hf_rm"}]), LOOP, "reward_specs"),
        (
            ensemble("gac", {"weights": [2, 1], "threshold": 0.5, "method": "avg"}),
            JOINT | {"aggregation": "gac", "weights": (2.0, 1.0), "threshold": 0.5},
            "",
        ),
        (ensemble("weighted_average", {"temperature": 1.0, "top_k": None}), JOINT | {"aggregation": "average"}, ""),
        (ensemble("average", max_rounds=500), JOINT | {"aggregation": "average"}, "ensemble.max_rounds"),
        (
            ensemble("distribution", {"model_weights": [0.7, 0.3]}),
            JOINT | {"aggregation": "distribution", "weights": (0.7, 0.3)},
            "",
        ),
        (
            gac(
                {"weight": SMALL, "score": 60, "priority": "supportive", "num_gpus": 0.5},
                {"weight": LARGE, "name": "gate", "score": 40, "priority": "primary", "max_memory": {0: "9GiB"}},
                NORM_TYPE_API_SERVER="score",
                THRESHOLD_API_SERVER=0.5,
            ),
            {
                "models": [
                    MODELS[0] | {"name": "gate", "parallelize": True, "max_memory_per_gpu": "9GiB"},
                    MODELS[1],
                ],
                "aggregation": "gac",
                "weights": (40.0, 60.0),
                "threshold": 0.5,
            },
            "num_gpus",
        ),
        (
            gac({"weight": LARGE, "score": 1}, {"weight": SMALL, "quantization": "8bit"}, THRESHOLD_API_SERVER=1.0),
            {"models": [MODELS[0], MODELS[1] | {"load_in_8bit": True}], "aggregation": "gac"},
            "CONFIG_API_SERVER.score, THRESHOLD_API_SERVER",
        ),
    ],
)
def test_a_file_becomes_arguments_and_what_has_no_effect_is_named(
    content: dict[str, Any], arguments: dict[str, Any], without_effect: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert is_toolkit_config(content)
    assert arguments_of(content, FILE) == arguments
    messages = [record.message for record in caplog.records]
    assert without_effect in " ".join(messages)
    assert len(messages) == bool(without_effect) + any("--apply_chat_template" in message for message in messages)
    needs_others = "reference" in arguments or "http" in str(arguments.get("scorer"))  # a file, or another package
    if all(model["backend"] == "hf" for model in arguments["models"]) and not needs_others:
        read_ensemble(arguments, registry.arguments)  # no other word for an argument than its own


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (theirs(enssemble={}), "the key enssemble is not known; did you mean ensemble?"),
        (theirs(debug={"zzzz": 1}), "the key debug.zzzz is not known; leave it out"),
        (theirs(server=8000), "server has to be a mapping with host, port, and is of type int"),
        ({"model_specs": None}, "model_specs has to be a list of models"),
        ({"model_specs": [{"engine": "hf"}]}, "model_specs[0].path is missing"),
        (spec(engine="hf_rm"), "model_specs[0].engine=hf_rm is not known"),
        (spec(quantisation="4bit"), "model_specs[0].quantisation is not known; did you mean quantization?"),
        (spec(quantization="2bit"), "model_specs[0].quantization=2bit is not known; did you mean 8bit?"),
        (spec(quantization="4bit", engine="api"), "quantization=4bit is only for engine: hf"),
        (spec(max_memory={0: "1GB", 1: "2GB"}), "max_memory gives GPUs different amounts (1GB, 2GB)"),
        (spec(max_memory="1GB"), "max_memory=1GB has to be a mapping"),
        (spec(max_memory={0: "1GB"}, engine="vllm"), "write engine_options.vllm.gpu_memory_utilization"),
        (spec(padding_side="both"), "padding_side=both is not known"),
        (spec(num_gpus="many"), "num_gpus=many has to be a number"),
        (spec(enable_thinking="maybe"), "enable_thinking=maybe has to be True or False"),
        (spec("a:http://h/v1:sk-secret", engine="api"), "write a:http://h/v1:$VARIABLE"),
        (spec(":http://h/v1", engine="api"), "model_specs[0].path names no model at a server"),
        (theirs(engine_options={"hf": {"use_8bit": True, "use_4bit": True}}), "are both true; keep one"),
        (theirs(engine_options={"tgi": {}}), "the key engine_options.tgi is not known"),
        (theirs(engine_options={"api": {"retries": 1}}), "did you mean max_retries?"),
        (ensemble("simple"), "simple stands in their README, but not in their code; of what is here the nearest are"),
        (ensemble("lop"), "output_aggregation_method=lop is not known; did you mean loop?"),
        (ensemble("loop", {"outline_max_tokens": 5}), "has no effect with loop, only with progressive"),
        (ensemble("loop", {"max_round": 5}), "max_round is not known; did you mean max_rounds?"),
        (ensemble("loop", {"max_rounds": 5}, max_rounds=6), "max_rounds differ; keep one"),
        (ensemble("loop", {"max_tokens": 5}, generation={"max_tokens": 6}), "max_tokens differ; keep one"),
        (ensemble("loop", {"max_repeat": 2}), "max_repeat=2 has to be 3 here"),
        (ensemble("loop", {"max_new_tokens_per_round": 0}), "max_new_tokens_per_round=0 has to be 1 or more"),
        (ensemble("gac", {"method": "stacking"}), "method='stacking' has to be avg here"),
        (ensemble("gac", {"top_k": 5}), "top_k=5 cannot be given here (write top_k in ensemble.generation)"),
        (ensemble("gac", {"temperature": 2}), "temperature=2 has to be 1 here"),
        (ensemble("gac", {"threshold": 2}), "threshold=2 has to be a number from 0 to 1"),
        (ensemble("average", {"weights": [1, 2]}), "weights has no effect with average, only with gac"),
        (ensemble("progressive", {"template_language": "zh"}), "template_language='zh' has to be en here"),
        (ensemble("progressive", {"outline_prompt_template": "{question}"}), "write model: tandem with policy"),
        (ensemble("progressive", {"final_prompt_template": "{question}"}), "final_prompt_template"),
        (ensemble("progressive", progressive={"mode": "length"}), "ensemble.progressive is of an older version"),
        (ensemble("progressive", generation={"max_tokens": 50}), "counts the outline of up to 500 tokens"),
        (ensemble("switch", model_selection_method="zscore"), "switch takes two; write all"),
        (ensemble("switch") | {"model_specs": [{"path": LARGE}] * 3}, "model_specs holds 3 models"),
        (ensemble(model_selection_method="learned"), "learned selects all models in their toolkit"),
        (ensemble(model_selection_method="z"), "model_selection_method=z is not known"),
        (ensemble(model_selection_params={"model_count": 1}), "model_selection_params.model_count is not known"),
        (
            ensemble(model_selection_method="zscore") | {"model_stats": {"stats": {LARGE: {"ppl_mean": 2}}}},
            "write model_stats: {stats_file: FILE}",
        ),
        (ensemble(generation={"extract_after": "[BEGIN]"}), "generation.extract_after='[BEGIN]' has no counterpart"),
        (ensemble(generation={"presence_penalty": 0.5}), "presence_penalty=0.5 has to be 0 here"),
        (ensemble(generation={"frequency_penalty": 1}), "write repetition_penalty"),
        (ensemble(generation={"length_penalty": 2, "diversity_penalty": 0}), "length_penalty=2 has to be 1 here"),
        (ensemble(generation={"max_new_tokens": 5}), "did you mean max_tokens?"),
        (ensemble(generation={"stop_strings": 5}), "stop_strings=5 has to be a list of texts"),
        (ensemble(generation={"seed": "x"}), "generation.seed=x has to be a whole number"),
        (rewards(), "reward_specs holds 0 reward models"),
        (rewards({"path": "a"}, {"path": "b"}), "reward_specs holds 2 reward models"),
        (rewards({"path": "a", "engine": "hf"}), "reward_specs[0].engine=hf is not known"),
        (rewards({"engine": "hf_rm"}), "reward_specs[0].path is missing"),
        (rewards({"path": "a", "engine": "hf_gen"}), "engine: hf_gen is none of the models"),
        (rewards({"path": SMALL, "engine": "hf_gen"}, score_threshold=-2), "on their scale of hf_gen"),
        (rewards({"path": "a", "engine": "api"}), "reward_specs[0].path is no address"),
        (rewards({"path": "a", "engine": "hf_rm", "weight": 0}), "weight=0 has to be above 0"),
        (gac(), "CONFIG_API_SERVER has to be a list of models"),
        (gac({"name": "a"}), "CONFIG_API_SERVER[0].weight has to be the folder"),
        (gac({"weight": "a", "priority": "first"}), "CONFIG_API_SERVER[0].priority=first is not known"),
        (gac(*[{"weight": "a", "priority": "primary"}] * 2), "several models of priority: primary"),
        (gac({"weight": "a"}, NORM_TYPE_API_SERVER="score"), "NORM_TYPE_API_SERVER: score needs a score"),
        (gac({"weight": "a"}, NORM_TYPE_API_SERVER="sum"), "NORM_TYPE_API_SERVER=sum is not known"),
        (gac({"weight": "a"}, THRESHOLD=1), "did you mean THRESHOLD_API_SERVER?"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence_that_names_it(content: dict[str, Any], sentence: str) -> None:
    for read in (arguments_of, run_of):
        with pytest.raises(ArgumentError) as caught:
            read(content, FILE)
        assert sentence in str(caught.value)
        assert str(caught.value).startswith("theirs.yaml: ")
        assert "sk-secret" not in str(caught.value)


def test_settings_of_generation_are_used_or_typed_out(caplog: pytest.LogCaptureFixture) -> None:
    given = {
        "max_tokens": 64,
        "temperature": 0.7,
        "do_sample": True,
        "top_p": 0.9,
        "top_k": 20,
        "repetition_penalty": 1.1,
        "stop_strings": ["Q:"],
        "stop_sequences": "\n\n",
        "presence_penalty": 0.0,
        "extract_after": None,
        "seed": None,
    }
    content = ensemble("loop", generation=given) | {"debug": {"enable_thinking": True}}
    found = generation_of(content)
    assert found == {name: given[name] for name in list(given)[1:6]} | {"max_gen_toks": 64, "until": ["Q:", "\n\n"]}
    run = run_of(content, FILE)
    assert (run["model"], run["gen_kwargs"], run["apply_chat_template"]) == ("ensemble", found, True)
    with caplog.at_level(logging.WARNING):
        arguments_of(content, FILE)
    assert 'add --gen_kwargs \'{"max_gen_toks": 64' in caplog.text
    assert "--apply_chat_template" in caplog.text
    assert generation_of(ensemble("progressive", {"outline_max_tokens": 14, "max_tokens": 64})) == {"max_gen_toks": 50}
    assert generation_of(gac({"weight": LARGE})) == {}


@pytest.mark.parametrize(
    ("names", "mentor", "how"),
    [
        (("a/x-0.5B", "a/x-8x7B"), 1, "by the sizes in their names"),
        (("a/x-30B-A3B", "a/x-14b"), 0, "by the sizes in their names"),
        (("a/x-600M", "a/x-1.5b:free"), 1, "by the sizes in their names"),
        (("pair/intern", "pair/mentor"), 1, "by the sizes of their weights"),
        (("a/big", "a/x-7B"), 0, "because it is named first"),
    ],
)
def test_progressive_and_switch_become_policies_of_the_larger_model(
    names: tuple[str, str], mentor: int, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = ensemble("switch", {"switch_after_tokens": 30}, max_rounds=5)
    content["model_specs"] = [{"path": name} for name in names]
    run = run_of(content, FILE)
    assert run["model"] == "tandem"
    settings = read_settings(run["model_args"], registry.arguments)
    assert str(settings.policy) == "handoff:30"
    assert settings.mentor is not None
    assert settings.mentor.label == names[mentor]
    assert how in caplog.text
    assert "ensemble.max_rounds" in caplog.text
    with pytest.raises(ArgumentError, match=r"--model tandem --model_args .*policy=outline:500.*run theirs\.yaml"):
        arguments_of(ensemble("progressive"), FILE)
