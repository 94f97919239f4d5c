"""Each role's own chat template: no text is lost to it, and what it cannot do is said in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import architectures
from bundled import COMMON
from lm_eval_tandem.cascade.prompts import Question
from lm_eval_tandem.errors import EngineError
from lm_eval_tandem.harness.model import TandemLM

REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)
IGNORING = (
    "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
)
HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
]


def saved(folder: Path, template: str | None) -> str:
    """A tiny model with this chat template."""
    architectures.save(folder, "llama")
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return str(folder)


@pytest.mark.parametrize("template", [REFUSING, IGNORING])
def test_a_template_without_system_texts_shows_them_in_the_first_user_turn(tmp_path: Path, template: str) -> None:
    intern = str(architectures.save(tmp_path / "intern", "llama"))
    lm = TandemLM(policy="stage:1", mentor=saved(tmp_path / "mentor", template), intern=intern, **COMMON)
    asked = lm.apply_chat_template(HISTORY)
    question = Question(str(asked), asked.messages)
    prompts, mentor, intern_engine = lm.settings.prompts, lm.engines["mentor"], lm.engines["intern"]
    assert mentor is not None
    assert intern_engine is not None
    assert prompts.alone(mentor, question) == "<user>Be brief.\n\nOne?<assistant>Two.<user>Three?<model>"
    assert prompts.mentor(mentor, question).startswith("<user>Be brief.\n\nOne?<assistant>Two.<user>Three?")
    assert prompts.alone(intern_engine, question) == str(asked)
    assert str(asked).startswith("Be brief.")
    lm.close()


def test_a_likelihood_has_the_same_context_as_an_answer(tmp_path: Path) -> None:
    lm = TandemLM(policy="mentor", mentor=saved(tmp_path / "m", REFUSING), intern="org/none", **COMMON)
    assert str(lm.apply_chat_template(HISTORY[:2])) == "<user>Be brief.\n\nOne?<model>"
    lm.close()


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "the tokenizer of .* has no chat template; leave out apply_chat_template, or"),
        (
            "{{ raise_exception('Odd turns') }}",
            r"does not accept a conversation of the turns system, user.*\(Odd turns\)",
        ),
    ],
)
def test_a_template_that_is_missing_or_fails_is_one_sentence(tmp_path: Path, template: str | None, words: str) -> None:
    lm = TandemLM(policy="mentor", mentor=saved(tmp_path / "m", template), intern="org/none", **COMMON)
    with pytest.raises(EngineError, match=words) as refusal:
        lm.apply_chat_template(HISTORY)
    assert "\n" not in str(refusal.value)
    lm.close()


def test_a_tokenizer_without_an_end_token_is_refused_before_the_weights_are_read(tmp_path: Path) -> None:
    folder = architectures.save_without_weights(tmp_path, "llama")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": None}))
    with pytest.raises(EngineError, match=r"has no end token; set eos_token in its tokenizer_config\.json") as refusal:
        TandemLM(policy="mentor", mentor=str(folder), intern="org/none", **COMMON)
    assert "\n" not in str(refusal.value)
