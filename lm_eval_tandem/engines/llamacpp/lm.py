"""lm-eval's model interface for a model run by llama.cpp: tokenizer, chat template and log-likelihoods."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from tqdm import tqdm

from lm_eval_tandem.engines.llamacpp.likelihoods import Likelihood, Likelihoods, Pair
from lm_eval_tandem.engines.tokenizer import remembered
from lm_eval_tandem.errors import ContextError, EngineError

log = logging.getLogger(__name__)

EncodedRequest = tuple[Any, list[int], list[int]]
"""A request as lm-eval has split it: its arguments (None for a window of a longer text), context and continuation."""


class LlamaLM(TemplateLM):
    """lm-eval's model interface for a model run by llama.cpp. Answers come from `LlamaEngine.generate`.

    Parameters
    ----------
    name
        Of the model.
    max_length
        Its window in tokens.
    longest_input
        Largest number of tokens that a server reads before it reports the next one.
    max_gen_toks
        Largest number of tokens of an answer where the task sets none.
    tokenizer
        Of the model.
    template_arguments
        For its chat template.
    prefix_token_id
        The token that stands for an empty text; None for the first token that the tokenizer names, else the end token.
    """

    tokenizer: Any
    likelihoods: Likelihoods
    """Set by the engine, whose servers they are measured on."""

    def __init__(
        self,
        name: str,
        max_length: int,
        longest_input: int,
        max_gen_toks: int,
        tokenizer: Any,
        template_arguments: dict[str, Any],
        prefix_token_id: int | None,
    ) -> None:
        super().__init__()
        self._device = "cpu"  # type: ignore[assignment]  # which lm-eval takes for None
        self.name, self.max_length, self.max_gen_toks = name, max_length, max_gen_toks
        self.tokenizer, self._template_arguments = tokenizer, template_arguments
        self._longest_input, self._prefix_token_id = longest_input, prefix_token_id
        self._encoded = remembered(self._encode)

    # Tokenizer and chat template

    @property
    def tokenizer_name(self) -> str:
        """Fingerprint for the harness's request cache."""
        return self.name.replace("/", "__")

    def apply_chat_template(self, history: Any, add_generation_prompt: bool = True) -> str:
        """See `lm_eval.api.model.LM`."""
        return str(
            self.tokenizer.apply_chat_template(
                history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self._template_arguments,
            )
        )

    def chat_template(self, chat_template: bool | str = False) -> str:
        """See `lm_eval.api.model.LM`."""
        return self.tokenizer.chat_template or "" if chat_template else ""

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty text."""
        given = (self._prefix_token_id, self.tokenizer.bos_token_id, self.eot_token_id)
        return int(next(one for one in given if one is not None))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text; by default with a first token where the tokenizer adds one and the text has none."""
        return list(self._encoded(string, add_special_tokens))

    def _encode(self, text: str, add_special_tokens: bool | None) -> tuple[int, ...]:
        adds = add_special_tokens
        if adds is None:
            adds = not (self._prefix and text.startswith(self._prefix))
        return tuple(self.tokenizer.encode(text, add_special_tokens=adds))

    @cached_property
    def _prefix(self) -> str:
        return str(self.tokenizer.decode([self.prefix_token_id]))

    # Log-likelihoods

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """See `lm_eval.api.model.LM`."""
        windows: list[EncodedRequest] = []
        owners: list[int] = []
        for place, (text,) in enumerate(request.args for request in requests):
            rolling = utils.get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self._longest_input, context_len=1
            )
            windows += [(None, *utils.make_disjoint_window(window)) for window in rolling]
            owners += [place] * (len(windows) - len(owners))
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(  # type: ignore[override]
        self, requests: Sequence[EncodedRequest], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fitting(*request) for request in requests]
        answers: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(pairs), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:

            def take(place: int, answer: Likelihood) -> None:
                answers[place] = (answer.logprob, answer.is_greedy)
                arguments = requests[place][0]
                if arguments is not None:
                    self.cache_hook.add_partial("loglikelihood", arguments, answers[place])
                bar.update()

            self.likelihoods.measure(pairs, take)
        return [answers[place] for place in range(len(pairs))]

    def _fitting(self, arguments: Any, context: list[int], continuation: list[int]) -> Pair:
        """A request whose context is cut from the left, where it has to be."""
        if not continuation:
            raise EngineError(
                f"the continuation {arguments[1]!r:.80} has no tokens of its own after its context; leave it out, "
                "or give it choices that are not empty."
            )
        if len(continuation) > self._longest_input:
            raise ContextError(
                f"a continuation of {len(continuation)} tokens exceeds the {self._longest_input} tokens that "
                f"{self.name} takes; give a larger max_length, or leave the task out."
            )
        excess = len(context) + len(continuation) - (self._longest_input + 1)
        if excess > 0:
            log.warning(
                "Combined length of context (%d) and continuation (%d) exceeds the longest input (%d tokens); the "
                "first %d tokens are left out.",
                len(context),
                len(continuation),
                self._longest_input,
                excess,
            )
        return Pair(context[max(0, excess) :], continuation)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Not offered: the harness asks `TandemLM`, which asks the engine."""
        raise NotImplementedError
