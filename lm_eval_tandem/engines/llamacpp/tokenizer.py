"""Text to token ids and back, for a model in a GGUF file.

llama.cpp's own tokenizer is asked over HTTP: it knows how each family of models splits text, which a conversion of the
file to a tokenizer of transformers loses for some (of SmolLM2's, digits). Where a file also holds the JSON of a
tokenizer of transformers, or `tokenizer=` names one, that one is used, because llama.cpp splits text of families that
it does not know like that of others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from lm_eval_tandem.engines.llamacpp.gguf_file import GGUFFile
from lm_eval_tandem.engines.llamacpp.properties import Properties, ask
from lm_eval_tandem.errors import loading

EMBEDDED = "tokenizer.huggingface.json"


class ServerTokenizer:
    """llama.cpp's tokenizer, with the few methods of those of transformers that are used here.

    Parameters
    ----------
    name
        Of the model.
    url
        Of the server.
    properties
        Of the server.
    chat_template
        The model's; None for none.
    """

    def __init__(self, name: str, url: str, properties: Properties, chat_template: str | None) -> None:
        self.name_or_path, self.chat_template, self._url = name, chat_template, url
        self._bos, self._eos = properties.bos_token, properties.eos_token
        self._special: dict[int, bool] = {}
        self.eos_token_id = self._single(self._eos)
        first = self._single(self._bos)
        # where a file names none, llama.cpp names an ordinary token
        self.bos_token_id = first if first is not None and self._is_special(first) else None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; a first token that the model wants is added unless the text has it."""
        has_first = bool(self._bos) and text.startswith(self._bos)
        return self._tokens(text, add_special=add_special_tokens and not has_first)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids, with U+FFFD for parts of characters."""
        shown = [i for i in token_ids if not (skip_special_tokens and self._is_special(i))]
        return str(ask(self._url, "/detokenize", {"tokens": shown})["content"]) if shown else ""

    def apply_chat_template(self, history: Any, tokenize: bool = False, **given: Any) -> str:
        """A conversation as text."""
        rendered, _ = render_jinja_template(
            conversations=[history],
            chat_template=self.chat_template,
            bos_token=self._bos,
            eos_token=self._eos,
            **given,
        )
        return str(rendered[0])

    def _tokens(self, text: str, add_special: bool = False, parse_special: bool = True) -> list[int]:
        asked = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return [int(i) for i in ask(self._url, "/tokenize", asked)["tokens"]]

    def _single(self, name: str) -> int | None:
        """The token of this name; None where there is none."""
        ids = self._tokens(name) if name else []
        return ids[0] if len(ids) == 1 else None

    def _is_special(self, token: int) -> bool:
        """Whether a token is a mark that no text has: its name is read as this token only where marks are."""
        if token not in self._special:
            name = self.decode([token])
            read = [self._tokens(name, parse_special=marks) for marks in (True, False)]
            self._special[token] = read[0] == [token] != read[1]
        return self._special[token]


def load_tokenizer(name: str, given: str | None, file: GGUFFile | None, url: str, properties: Properties) -> Any:
    """The tokenizer of a model.

    Parameters
    ----------
    name
        Of the model.
    given
        Folder or hub id of a tokenizer of transformers; None for the model's own.
    file
        The model's file; None where only its server is known.
    url, properties
        Of a server of the model.

    Raises
    ------
    EngineError
        The tokenizer cannot be loaded.
    """
    if given is not None:
        with loading(f"tokenizer={given}"):
            return AutoTokenizer.from_pretrained(given)
    # A server has a template of its own for models without one.
    template = properties.chat_template if file is None else file.metadata.get("tokenizer.chat_template")
    embedded = None if file is None else file.metadata.get(EMBEDDED)
    if embedded is None:
        return ServerTokenizer(name, url, properties, template or None)
    network = Tokenizer.from_str(embedded)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=network, eos_token=properties.eos_token or None, clean_up_tokenization_spaces=False
    )
    tokenizer.name_or_path, tokenizer.chat_template = name, template or None
    return tokenizer
