"""What keeps paths, user names and keys of the machine out of a submission.

Settings go out by allowlist: a format names each field that it writes, and `short` passes on only what looks like a
setting, a path as its last part. Questions and answers cannot be chosen so. `Redaction` goes over every text of a file
that is written, replaces what looks like a key, and cuts paths into a home folder or this machine's own folders.
"""

from __future__ import annotations

import platform
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lm_eval_tandem.digits import DIGITS, significant

KEYS = re.compile(
    r"(?<![A-Za-z0-9])"
    r"(?:hf_|sk[-_]|pk[-_]|gh[opsur]_|github_pat_|glpat-|gsk_|xai-|pplx-|nvapi-|r8_|xox[a-z]-|AIza|AKIA|ASIA|eyJ)"
    r"[A-Za-z0-9_\-.=]{12,}"
)
"""Keys by the beginnings that their issuers give them: Hugging Face, OpenAI and the like, GitHub, GitLab, clouds."""
CREDENTIALS = re.compile(
    r"(?i)(\bbearer\s+|\b(?:api[_-]?key|access[_-]?token|token|password|secret)[\"']?\s*[=:]\s*[\"']?)"
    r"(?=[a-z_\-./+]*\d)(?=[\d_\-./+]*[a-z])[a-z0-9_\-./+=]{16,}"
)
"""A word for a secret, and a long value of letters and digits."""
LOGIN = re.compile(r"(?<=://)[^/\s@]+@")
"""User name and password of a web address."""
REST = r"""[^\s"'<>|:,;)\]}]*"""
"""The rest of a path within a text."""
MOUNTS = r"/(?:mnt(?:/[a-z])?|var|export|usr|gpfs|nfs|lustre|data|scratch|storage)"
"""Where clusters, FreeBSD, some kinds of Linux, and Windows within Linux keep the folder of home folders."""
HOMES = re.compile(
    rf"(?:(?<=file://)|(?<![\w.…/\\]))(?:[A-Za-z]:|{MOUNTS}(?=/(?:home|[Uu]sers)/))?"
    rf"[/\\]{{1,2}}(?:home|Users|users|root)[/\\]{{1,2}}{REST}|(?<![\w/])~/{REST}"
)
"""A path into a home folder of Linux, macOS or Windows."""
PRIVATE_KEYS = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
"""A private key as files have it, to its end or to that of the text."""
KEY, CUT, HOST = "[key]", "…/", "[host]"
"""What stands for a key, for the folders of a path, and for the name of this machine."""
SETTING = re.compile(r"(?!/)[\w.+:@=,()\[\]%/* -]{1,300}", re.ASCII)
"""What a setting may consist of."""
WHOLE_PATH = re.compile(r"(?:~|/|\.{1,2}[/\\]|[A-Za-z]:[\\/])[^,;=]*")
"""A setting that is a path."""
FOLDERS = re.compile(r"(?:^|(?<=[=,; ]))(?:~|/|[A-Za-z]:[\\/])?(?:[^\s,;=/\\]+[/\\])+(?=[^\s,;=/\\])(?!\d+(?:$|[,; ]))")
"""The folders of a path within a setting; "stage/1" is none."""


def short(value: Any) -> str | None:
    """Return a setting as it may go out: a number, a name, or of a path its last part; None for anything else.

    Examples
    --------
    >>> short("/home/alice/models/small.gguf"), short([0.5, 0.25]), short("http://gpu17:8000/v1")
    ('small.gguf', '0.5:0.25', None)
    """
    if isinstance(value, (list, tuple)):
        parts = [short(part) for part in value]
        return None if None in parts else ":".join(part for part in parts if part is not None)
    if isinstance(value, float):
        value = significant(value, DIGITS)
    text = str(value).strip()
    if "://" in text:
        return None
    text = text.rstrip("/\\")
    if HOMES.fullmatch(text):
        text = last_part(text)
    elif WHOLE_PATH.fullmatch(text):
        text = re.split(r"[/\\]", text)[-1]
    text = FOLDERS.sub("", text)
    return text if SETTING.fullmatch(text) and not KEYS.search(text) else None


def shorts(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that may go out (`short`), without those that are None or empty."""
    texts = {name: short(value) for name, value in values.items() if value is not None}
    return {name: text for name, text in texts.items() if text}


class Redaction:
    """Goes over the texts of files before they are written, and counts what it replaced.

    Parameters
    ----------
    own
        Further words that must not go out, this machine's own folders and name by default.

    Attributes
    ----------
    replaced
        Number of texts in which something was replaced.
    """

    def __init__(self, own: Iterable[str] | None = None) -> None:
        self.replaced = 0
        words = sorted(set(own_words() if own is None else own), key=len, reverse=True)
        folders, names = ([re.escape(w) for w in words if (w[0] in "/\\" or w[1:2] == ":") == path] for path in (1, 0))
        self._folders = re.compile(rf"(?:{'|'.join(folders)})(?=[/\\]){REST}") if folders else None
        self._names = re.compile(rf"(?<![\w.-])(?:{'|'.join(names)})(?![\w-])") if names else None

    def __call__(self, value: Any) -> Any:
        """Return a JSON value with every text in it redacted; names of fields stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {name: self(inner) for name, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(inner) for inner in value]
        return value

    def text(self, text: str) -> str:
        """Return a text without keys, logins, paths into home folders and words of this machine.

        Examples
        --------
        >>> redaction = Redaction(own=["gpu17"])
        >>> redaction.text("see /home/alice/runs/log.txt on gpu17"), redaction.replaced
        ('see …/log.txt on [host]', 1)
        """
        found = KEYS.sub(KEY, PRIVATE_KEYS.sub(KEY, text))
        found = CREDENTIALS.sub(rf"\1{KEY}", found)
        found = LOGIN.sub("", found)
        if self._folders is not None:
            found = self._folders.sub(lambda path: CUT + re.split(r"[/\\]", path[0])[-1], found)
        found = HOMES.sub(lambda path: CUT + last_part(path[0]), found)
        if self._names is not None:
            found = self._names.sub(HOST, found)
        self.replaced += found != text
        return found


def last_part(path: str) -> str:
    """Return the last part of a path into a home folder; "" where that would be the user's name."""
    parts = [part for part in re.split(r"[/\\]+", path) if part]
    place = next(place for place, part in enumerate(parts) if part in ("~", "root", "home", "Users", "users"))
    owners = place + (1 if parts[place] in ("~", "root") else 2)  # parts that name the home folder, its user included
    return parts[-1] if len(parts) > owners else ""


def own_words() -> list[str]:
    """Return this machine's name, and the user's home folder, the current one and that of temporary files.

    Left out is what is no place of this machine alone, as /tmp, or may be a word of a text, as a machine called "sun".
    """
    folders = [str(Path.home()), str(Path.cwd()), tempfile.gettempdir()]
    host = platform.node()
    names = [name for name in {host, host.partition(".")[0]} if len(name) >= 6 and re.search(r"[\d.-]", name)]
    return [folder for folder in folders if len(Path(folder).parts) > 2] + names
