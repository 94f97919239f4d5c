"""What the answers of another model cost: its tokens, counted by a tokenizer that the user names, and Eq. 12.

The harness records the text of an answer and not its tokens. So they are counted by the model's tokenizer: those of
the text, and one for the end, unless the answer is as long as it may be. A stop string that the harness has cut off
counts as this one token. Reasoning that an API hides is in no sample and is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.accounting import TERA
from lm_eval_tandem.digits import mean
from lm_eval_tandem.errors import ArgumentError, one_line
from lm_eval_tandem.reports.sources.harness_files import first_prompt
from lm_eval_tandem.reports.sources.other_models import OtherModel
from lm_eval_tandem.reports.sources.question_settings import token_limit

Floats = NDArray[np.float64]


def count(
    model: OtherModel,
    samples: Sequence[Mapping[str, Any]],
    task_config: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> tuple[OtherModel, dict[str, Floats]]:
    """Return the model, with the reason if its tokens cannot be counted, and the measures of its answers.

    Parameters
    ----------
    model
        The model, with what the command line says of it.
    samples
        Samples of one task, one per question.
    task_config
        The task's entry in `configs` of the results file.
    arguments
        The run's model arguments.

    Returns
    -------
    tuple
        The model, and float64 (Q,) each: `length` in tokens, `tflops` by Eq. 12 if the number of parameters is known,
        `dollars` if prices are. Empty without a tokenizer.
    """
    uncounted = model.uncounted or why_uncounted(samples, task_config)
    if uncounted or model.tokenizer is None:
        return replace(model, uncounted=uncounted), {}
    limit = token_limit(task_config, arguments)
    answers = [answers_of(sample) for sample in samples]
    sizes = iter(token_counts(model, [text for texts in answers for text in texts]))
    length = np.array([mean([with_end(next(sizes), limit) for _ in texts]) for texts in answers])
    measures = {"length": length}
    if model.parameters is not None:
        measures["tflops"] = 2 / TERA * (model.parameters * length)
    prompts = [first_prompt(sample) for sample in samples]
    if model.prices is not None and all(prompt is not None for prompt in prompts):
        read = token_counts(model, [prompt or "" for prompt in prompts])
        paid = zip(read, length, strict=True)
        measures["dollars"] = np.array([model.prices.dollars(prompt, 0, new) for prompt, new in paid])
    return model, measures


def why_uncounted(samples: Sequence[Mapping[str, Any]], task_config: Mapping[str, Any]) -> str:
    """Return why nobody could count the tokens of a task's answers, as the end of a sentence; "" if they can be."""
    if task_config.get("output_type", "generate_until") != "generate_until":
        return "the task compares given answers, and nothing is generated"
    return "" if all("resps" in sample for sample in samples) else "the samples hold no answers"


def answers_of(sample: Mapping[str, Any]) -> list[str]:
    """Return the answers to a question, one per repeat, as the model gave them, before any filter."""
    return [str(text) for of_request in sample["resps"] for text in of_request]


def with_end(tokens: int, limit: int | None) -> int:
    """Return the number of generated tokens of an answer whose text has `tokens`: one more if it ended by itself."""
    return tokens + 1 if limit is None else min(tokens + 1, max(tokens, limit))


def token_counts(model: OtherModel, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each text."""
    assert model.tokenizer is not None
    tokenizer = load_tokenizer(model.tokenizer, model.short_name)
    return [len(encoded.ids) for encoded in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


@lru_cache(maxsize=8)
def load_tokenizer(place: Path, name: str) -> Any:
    """Return the tokenizer of a folder with a tokenizer.json, or of such a file.

    Raises
    ------
    ArgumentError
        There is none, or it cannot be read.
    """
    from tokenizers import Tokenizer

    file = place / "tokenizer.json" if place.is_dir() else place
    if not file.is_file():
        raise ArgumentError(
            f"--tokenizer {name}={place}: there is no tokenizer.json; give a folder to which a fast tokenizer of "
            "transformers was saved."
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more exact
        raise ArgumentError(
            f"--tokenizer {name}={place}: tokenizer.json cannot be read ({one_line(error)}); give another folder."
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
