"""A classifier in a model repository: on a hub (`classifier=hub:org/name@COMMIT`), or in a folder with a copy of it.

`lm-eval-tandem submit hub` makes such a repository. The classifier's files lie in classifier/NAME, tandem.yaml is the
configuration of a run, and SHA256SUMS has the checksums of both, as `sha256sum -c` reads them. A file that differs from
its checksum is refused, and no other file of the repository is fetched or read. As with a classifier in a folder of its
own, nothing in it is code.
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from lm_eval_tandem.errors import ArgumentError, ClassifierError, one_line

log = logging.getLogger(__name__)

PREFIX = "hub:"
"""What a classifier's argument begins with where it names a repository of a hub."""
CLASSIFIERS = "classifier"
"""The folder of a repository that holds the classifier's own, which has the classifier's name."""
CONFIGURATION = "tandem.yaml"
"""The configuration of a run, for `lm_eval run --config`."""
CHECKSUMS = "SHA256SUMS"
"""One line per file: SHA-256, two blanks, the path in the repository."""
NEEDED = ("config.json", "model.safetensors")
"""Files that every classifier has."""
FETCHED = (CHECKSUMS, CONFIGURATION, *(f"{CLASSIFIERS}/*/{name}" for name in (*NEEDED, "adapter/*")))
"""Patterns of the files that are fetched from a hub."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_REVISION = re.compile(r"\w[\w./-]*", re.ASCII)
_PLACEHOLDER = "COMMIT"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


@dataclass(frozen=True)
class HubRepository:
    """A model repository of a hub.

    Attributes
    ----------
    id
        Account and name: org/name.
    revision
        Commit, tag or branch; None for the newest commit.

    Examples
    --------
    >>> str(HubRepository.parse("hub:org/name@v1"))
    'hub:org/name@v1'
    """

    id: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubRepository:
        """The repository that a text names as hub:org/name or hub:org/name@REVISION.

        Raises
        ------
        ArgumentError
            The text has another form.
        """
        name, at, revision = text.removeprefix(PREFIX).partition("@")
        if revision == _PLACEHOLDER:
            raise ArgumentError(
                f"classifier={text} still holds the word {_PLACEHOLDER}; put a commit of the repository there (40 "
                f"digits, on its page under Files), or leave out @{_PLACEHOLDER} for the newest."
            )
        if not _ID.fullmatch(name) or (at and not _REVISION.fullmatch(revision)):
            raise ArgumentError(
                f"classifier={text} names no repository; give {PREFIX}org/name or {PREFIX}org/name@COMMIT, or the "
                f"folder of a copy without {PREFIX}."
            )
        return cls(name, revision or None)

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, under which a repository never changes."""
        return bool(_COMMIT.fullmatch(self.revision or ""))

    def __str__(self) -> str:
        return f"{PREFIX}{self.id}" + (f"@{self.revision}" if self.revision else "")


def parse(text: str) -> HubRepository | Path:
    """What the argument `classifier` names: a repository of a hub, or a folder.

    Raises
    ------
    ArgumentError
        It begins with hub: and names no repository.
    """
    place = text.removeprefix(PREFIX)
    is_path = re.match(r"[./~]", place) is not None
    return HubRepository.parse(text) if text.startswith(PREFIX) and not is_path else Path(place).expanduser()


@dataclass(frozen=True)
class Found:
    """A classifier's folder.

    Attributes
    ----------
    folder
        On this machine.
    origin
        The repository and its commit, as results record them; empty for a folder that was named as such.
    """

    folder: Path
    origin: dict[str, str]


def find(classifier: str | Path | HubRepository) -> Found:
    """The folder of a classifier, fetched where it is on a hub, and checked where it lies in a repository.

    Parameters
    ----------
    classifier
        A repository of a hub, a folder that holds a copy of one, or the classifier's own folder.

    Raises
    ------
    ClassifierError
        The repository cannot be fetched, holds no classifier, or a file differs from its checksum.
    """
    if isinstance(classifier, HubRepository):
        root = fetch(classifier)
        origin = {"repository": classifier.id, "commit": root.name}
        return Found(checked_folder(root, str(classifier)), origin)
    path = Path(classifier)
    if not (path / NEEDED[0]).is_file() and any(path.glob(f"{CLASSIFIERS}/*/{NEEDED[0]}")):
        return Found(checked_folder(path, str(path)), {})
    root = path.absolute().parent.parent
    if path.absolute().parent.name == CLASSIFIERS and (root / CHECKSUMS).is_file():
        check(root, path.absolute().name, str(root))
    return Found(path, {})


def fetch(repository: HubRepository) -> Path:
    """The folder with a snapshot of a hub's repository, named after its commit; offline, from the local cache.

    Raises
    ------
    ClassifierError
        It cannot be had.
    """
    from huggingface_hub import constants, snapshot_download

    try:
        folder = snapshot_download(
            repository.id,
            revision=repository.revision,
            allow_patterns=list(FETCHED),
            local_files_only=constants.HF_HUB_OFFLINE,
            library_name="lm-eval-tandem",
        )
    except Exception as error:  # of the connection too, whose class depends on the hub library's release
        raise ClassifierError(
            f"classifier={repository} cannot be fetched ({one_line(error)}); check its name and revision and the "
            "connection, or give the folder of a copy as classifier=FOLDER."
        ) from None
    root = Path(folder)
    if not repository.pinned:
        log.warning(
            "classifier=%s names no commit, so a later run may get another classifier; this one has commit %s, and "
            "classifier=%s%s@%s names it.",
            *(repository, root.name, PREFIX, repository.id, root.name),
        )
    return root


def checked_folder(root: Path, name: str) -> Path:
    """The folder of the only classifier of a repository, with its checksums verified.

    Parameters
    ----------
    root
        The repository's folder.
    name
        What messages call it.
    """
    found = sorted(file.parent for file in root.glob(f"{CLASSIFIERS}/*/{NEEDED[0]}"))
    if len(found) != 1:
        raise ClassifierError(
            f"The repository {name} holds {len(found)} classifiers ({CLASSIFIERS}/NAME/{NEEDED[0]}), where one is "
            "needed; name a repository that `lm-eval-tandem submit hub` made, or the classifier's own folder."
        )
    check(root, found[0].name, name)
    return found[0]


def check(root: Path, classifier: str, name: str) -> None:
    """Compare a repository's classifier and configuration with its checksums.

    Parameters
    ----------
    root
        The repository's folder.
    classifier
        The name of the classifier.
    name
        What messages call the repository.

    Raises
    ------
    ClassifierError
        There are no checksums, one is missing, or a file differs from its own.
    """
    expected = checksums(root, name)
    own = f"{CLASSIFIERS}/{classifier}/"
    needed = [CONFIGURATION, *(own + file for file in NEEDED)]
    unlisted = [file for file in needed if file not in expected]
    if unlisted:
        raise ClassifierError(f"The repository {name} has no checksum of {unlisted[0]}; fetch it again.")
    present = [file.relative_to(root).as_posix() for file in (root / own).rglob("*") if file.is_file()]
    for path in [*present, *([CONFIGURATION] if (root / CONFIGURATION).is_file() else [])]:
        content = (root / path).read_bytes()
        if path in expected and hashlib.sha256(content).hexdigest() != expected[path]:
            raise ClassifierError(
                f"{path} of the repository {name} is not the file that was published (its checksum differs from "
                f"{CHECKSUMS}); fetch the repository again, and to change {CONFIGURATION}, copy it elsewhere."
            )


def checksums(root: Path, name: str) -> dict[str, str]:
    """The checksum of each file of a repository that has one, by its path in there."""
    try:
        lines = (root / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ClassifierError(
            f"The repository {name} lacks a readable {CHECKSUMS} ({one_line(error)}); name one that "
            "`lm-eval-tandem submit hub` made, or the classifier's own folder."
        ) from None
    found = [_LINE.fullmatch(line) for line in lines]
    return {match[2]: match[1] for match in found if match is not None}


def checksum_lines(files: dict[str, bytes]) -> str:
    """The content of SHA256SUMS for some files, by their paths in the repository."""
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {path}\n" for path, content in sorted(files.items()))
