"""Requests are read strictly: what is not supported is refused with the name of its field, and nothing is ignored."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server is tested with: pip install .[server]")

from lm_eval_tandem.server.errors import RequestError
from lm_eval_tandem.server.protocol import MAX_STOPS, Asked, ChatRequest, CompletionRequest, read_chat, read_completion
from lm_eval_tandem.server.unsupported import NOTHING_OF_CHATS, NOTHING_OF_COMPLETIONS

CHAT: dict[str, Any] = {"model": "tandem", "messages": [{"role": "user", "content": "1 + 1 = ?"}]}


def chat(**fields: Any) -> Asked:
    return read_chat(json.dumps(CHAT | fields).encode())


def completion(**fields: Any) -> Asked:
    return read_completion(json.dumps({"model": "tandem", "prompt": "1 + 1 =", **fields}).encode())


def test_a_chat_is_read() -> None:
    asked = chat(stop="\n", temperature=1, top_p=0.5, max_completion_tokens=7, n=2, seed=-3, user="someone")
    assert asked.prompts == ([{"role": "user", "content": "1 + 1 = ?"}],)
    assert asked.sampling == {"stop": ("\n",), "temperature": 1, "top_p": 0.5}
    assert (asked.max_tokens, asked.n, asked.seed, asked.answers) == (7, 2, -3, 2)


def test_parts_of_text_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "1 + "}, {"type": "text", "text": "1"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    assert chat(messages=messages).prompts[0] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1"},
    ]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ("a",)), ([5, 6], ((5, 6),)), (["a", "b"], ("a", "b")), ([[5], [6, 7]], ((5,), (6, 7)))],
)
def test_prompts_of_every_shape_are_read(prompt: Any, prompts: Any) -> None:
    assert completion(prompt=prompt).prompts == prompts


@pytest.mark.parametrize("prompt", [None, 5, [], [[]], ["a", 5], [True], [[5], "a"], {"text": "a"}, [1.5]])
def test_prompts_of_no_shape_are_refused(prompt: Any) -> None:
    with pytest.raises(RequestError, match="prompt has to be") as refused:
        completion(prompt=prompt)
    assert refused.value.param == "prompt"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"unheard_of": 1}, "unheard_of"),
        ({"unheard_of": False}, "unheard_of"),
        ({"return_token_ids": True}, "return_token_ids"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"messages": [{"role": "user", "content": "x", "unheard_of": 1}]}, "messages.0.unheard_of"),
        ({"messages": [{"role": "user", "content": "x", "reasoning_content": "y"}]}, "messages.0.reasoning_content"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]}, "messages.0.tool_calls"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"5": 100}}, "logit_bias"),
        ({"top_logprobs": 3, "logprobs": True}, "top_logprobs"),
        ({"stop": ["a"] * (MAX_STOPS + 1)}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a", 5]}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3.5}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"more": 1}}, "stream_options"),
        ({"tandem": {"events": True}}, "tandem.events"),
        ({"tandem": {"insight": True}}, "tandem.insight"),
        ({"messages": []}, "messages"),
        ({"messages": "1 + 1"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", "name": "Ada"}]}, "messages.0.name"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        chat(**fields)
    assert refused.value.status == 400
    assert str(refused.value.param).startswith(param)
    assert str(refused.value.param) in str(refused.value)


@pytest.mark.parametrize("fields", [{"temperature": 1e-11}, {"repetition_penalty": 1e-3}, {"repetition_penalty": 101}])
def test_sampling_that_could_make_logits_infinite_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as refused:
        chat(**fields)
    assert refused.value.param == next(iter(fields))


def test_sampling_at_its_bounds_is_read() -> None:
    for fields in (
        {"temperature": 1e-10},
        {"temperature": 0},
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 100},
    ):
        assert chat(**fields).sampling == fields


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"stop": ["a"] * (MAX_STOPS + 1)}, "stop", "at most 16"),
        ({"stop": "x" * 257}, "stop", "at most 256"),
        ({"stop": ["x" * 257]}, "stop.0", "at most 256"),
        ({"stop": 5}, "stop", "valid string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url"}]}]},
            "messages.0.content.1.type",
            "'text'",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "valid string"),
    ],
)
def test_a_field_of_several_types_is_told_what_is_wrong_with_the_one_that_was_meant(
    fields: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(RequestError, match=says) as refused:
        chat(**fields)
    assert refused.value.param == param


def test_nothing_to_write_needs_a_prompt_to_repeat() -> None:
    assert completion(max_tokens=0, echo=True).max_tokens == 0
    for ask in (completion, chat):
        with pytest.raises(RequestError, match="max_tokens is 0, so there is nothing to answer"):
            ask(max_tokens=0)


def test_a_missing_model_is_named() -> None:
    with pytest.raises(RequestError, match="model: field required") as refused:
        read_chat(b'{"messages": [{"role": "user", "content": "x"}]}')
    assert refused.value.param == "model"


@pytest.mark.parametrize("field", NOTHING_OF_CHATS)
def test_values_that_ask_for_nothing_are_accepted(field: str) -> None:
    for value in (None, *NOTHING_OF_CHATS[field]):
        assert chat(**{field: value}) == chat()


@pytest.mark.parametrize("field", NOTHING_OF_COMPLETIONS)
def test_values_that_ask_for_nothing_are_accepted_of_completions(field: str) -> None:
    for value in (None, *NOTHING_OF_COMPLETIONS[field]):
        assert completion(**{field: value}) == completion()


@pytest.mark.parametrize(
    "fields",
    [
        {"return_token_ids": False},
        {"unheard_of": None},
        {"stream_options": {}},
        {"stream_options": {"include_usage": False, "include_obfuscation": False}},
        {"stream_options": {"include_usage": None, "include_obfuscation": None}},
        {"tool_choice": "auto"},
        {"top_logprobs": 0, "logprobs": False},
        {"prompt_cache_retention": "24h"},
        {"tandem": {}},
    ],
)
def test_nothing_is_asked_in_many_ways(fields: dict[str, Any]) -> None:
    assert chat(**fields) == chat()


def test_every_field_of_openai_s_client_is_known() -> None:
    """Those that the server does not have are refused as not supported, and not as if nobody had heard of them."""
    openai = pytest.importorskip("openai")
    chats = openai.types.chat.completion_create_params.CompletionCreateParamsBase.__annotations__
    completions = openai.types.completion_create_params.CompletionCreateParamsBase.__annotations__
    assert set(chats) <= {*ChatRequest.model_fields, *NOTHING_OF_CHATS}
    assert set(completions) <= {*CompletionRequest.model_fields, *NOTHING_OF_COMPLETIONS}


def test_a_turn_of_the_assistant_may_be_sent_back_as_it_came() -> None:
    turn = {"role": "assistant", "content": "2"}
    more = {"refusal": None, "annotations": None, "audio": None, "function_call": None, "tool_calls": [], "name": None}
    question = CHAT["messages"][0]
    asked = chat(messages=[question, turn | more | {"reasoning_content": "Add.", "reasoning": "Add."}, question])
    assert asked.prompts == ([question, turn, question],)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"messages": [{"role": "user", "content": "x", "name": "Ada"}]},
            "messages.0.name is not supported; leave it out.",
        ),
        ({"top_logprobs": 3}, "top_logprobs is not supported with this value; leave it out."),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation is not supported with this value; leave it out.",
        ),
        ({"prediction": {"type": "content"}}, "prediction is not supported; leave it out."),
    ],
)
def test_what_is_not_supported_is_said_in_the_same_words_everywhere(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as refused:
        chat(**fields)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000, b'{"a":' * 100_000]
)
def test_what_is_no_object_of_json_is_refused(body: bytes) -> None:
    for read in (read_chat, read_completion):
        with pytest.raises(RequestError) as refused:
            read(body)
        assert refused.value.status == 400


def test_half_of_a_character_is_refused() -> None:
    with pytest.raises(RequestError, match="no JSON"):
        read_completion(b'{"model": "tandem", "prompt": "\\ud800"}')


def test_refusals_do_not_repeat_what_was_sent() -> None:
    with pytest.raises(RequestError) as refused:
        chat(temperature="a private text", messages=[{"role": "user", "content": {"secret": "a private text"}}])
    assert "private" not in str(refused.value)
