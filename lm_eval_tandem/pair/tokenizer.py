"""Builds the pair's tokenizer: a fixed vocabulary of whole words and numbers, and single bytes for everything else.

It works on bytes, so `decode(encode(text))` returns every text unchanged. A token has white space at most as its first
character, so a text may be cut before any white space without a change of its token ids. There is no token for the
beginning of a text. Mentor and intern use the same tokenizer.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lm_eval_tandem.pair.problems import GOODS, MAX_STEPS, MAX_TOTAL, PEOPLE

PAD, EOS = "<pad>", "</s>"
MAX_LENGTH = 512
"""Longest text of the models in tokens."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token + '\n' }}{% endif %}{% endfor %}"
)
"""A user's message is rendered as it is, so prompts with and without the template are the same."""
_WORD_PATTERN = r" [1-9]\)|[0-9]:| ?[A-Za-z]+| ?[0-9]+| ?[-+]=| ?[^\sA-Za-z0-9]|\s"
_WORDS = (
    " a an starts with coins buys sells How many does have x final printed steps print it "
    " Goal Planning Retrieval Action Check Answer Steps Insights = - + -= +="
).split()
_WORDS_WITHOUT_SPACE = [*PEOPLE, "What", "x", *(f"{line}:" for line in range(MAX_STEPS + 2))]


def build() -> PreTrainedTokenizerFast:
    """Build the tokenizer; it is the same at every call."""
    words = [*_WORDS, *PEOPLE, *GOODS, *map(str, range(MAX_TOTAL + 1)), *(f"{i})" for i in range(1, MAX_STEPS + 1))]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = [PAD, EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    for word in [*(" " + word for word in words), *_WORDS_WITHOUT_SPACE]:
        pieces.append(byte_level.pre_tokenize_str(word)[0][0])
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(_WORD_PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, EOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        model_max_length=MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def save(folder: Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer, write its files into a folder, and return it."""
    tokenizer = build()
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 and 5 both load
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return tokenizer
