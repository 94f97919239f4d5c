"""The pair's tokenizer: a small fixed vocabulary of whole words and numbers, single bytes for everything else.

Byte-level, so every text survives `decode(encode(text))`; a piece holds white space at most as its first character, so
a text may be cut before any white space without changing its ids. There is no BOS.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lm_eval_tandem.pair.problems import GOODS, LARGEST, MAX_STEPS, PEOPLE

PAD, EOS = "<pad>", "</s>"
MAX_LENGTH = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token + '\n' }}{% endif %}{% endfor %}"
)
_PIECES = r" [1-9]\)|[0-9]:| ?[A-Za-z]+| ?[0-9]+| ?[-+]=| ?[^\sA-Za-z0-9]|\s"
_WORDS = (
    " a an starts with coins buys sells How many does have x final printed steps print it "
    " Goal Planning Retrieval Action Check Answer Steps Insights = - + -= +="
).split()
_BARE = [*PEOPLE, "What", "x", *(f"{line}:" for line in range(MAX_STEPS + 2))]


def build() -> PreTrainedTokenizerFast:
    """The tokenizer, the same for mentor and intern."""
    words = [*_WORDS, *PEOPLE, *GOODS, *map(str, range(LARGEST + 1)), *(f"{step})" for step in range(1, MAX_STEPS + 1))]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = [PAD, EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [byte_level.pre_tokenize_str(word)[0][0] for word in [*(" " + word for word in words), *_BARE]]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_PIECES), "isolated"), byte_level])
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
    """Build the tokenizer and write its files."""
    tokenizer = build()
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 and 5 both load
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return tokenizer
