"""What of this machine and of other servers stays here: clients get no folders, and the log no keys."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval_tandem.engines import Engine

KEYS = re.compile(
    r"""
    (?i: \b(?:bearer | basic) \s+ | \b(?:api[-_ ]?key | token | secret | password)\b ["']? \s* (?:[:=] | \s is \s) \s* )
    ["']? (?P<named> [^\s"',;]{4,} )
    | \b(?P<known> (?:sk | pk | rk | hf | gsk | xai | gh[opsu] | github_pat | glpat | xox[abp] | AIza | AKIA)
      [-_]? [A-Za-z0-9_-]{12,} )
    """,
    re.X,
)
"""What is a key by the words before it, or by its own form."""


def without_keys(text: str) -> str:
    """The text with keys blotted out, for the log.

    Examples
    --------
    >>> without_keys("401: Incorrect API key: sk-proj-abcdefghijklmnop; account 7")
    '401: Incorrect API key: …; account 7'
    """

    def blotted(found: re.Match[str]) -> str:
        key = found["named"] or found["known"]
        return found[0].replace(key, "…")

    return KEYS.sub(blotted, text)


def is_path(name: str) -> bool:
    """Whether a name of a model or file is a path of this machine, and not an id of a hub or a name at a server."""
    is_there = os.sep in name and os.path.exists(name)  # Path.exists raises for a text that is too long for a name
    return Path(name).is_absolute() or name.startswith(("./", "../", "~")) or is_there


def last_part(name: str) -> str:
    """A name for clients: of a path its last part, of any other name all of it."""
    return Path(name).name if is_path(name) else name


class Disclosure:
    """Writes names of files without their folders.

    Parameters
    ----------
    engines
        Those whose errors may name a folder.
    """

    def __init__(self, engines: Mapping[str, Engine | None]) -> None:
        loaded = [engine for engine in engines.values() if engine is not None]
        names = {engine.name for engine in loaded}
        names |= {str(getattr(getattr(engine.lm, "tokenizer", None), "name_or_path", "")) for engine in loaded}
        self._paths = sorted(filter(is_path, names), key=len, reverse=True)

    def sentence(self, text: str) -> str:
        """A sentence in which models are named without their folders."""
        for path in self._paths:
            text = text.replace(path, last_part(path))
        return text

    def content(self, value: Any) -> Any:
        """JSON values whose texts, where they are paths, are their last parts."""
        if isinstance(value, str):
            return last_part(value)
        if isinstance(value, Mapping):
            return {name: self.content(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.content(one) for one in value]
        return value
