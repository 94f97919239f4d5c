"""Finding the classifier that a report computes scores and feature importances with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_tandem import _paths
from lm_eval_tandem.reports.sources.comparison import Comparison

if TYPE_CHECKING:
    from lm_eval_tandem.judge.artefact import Sufficiency


def load(name: str) -> Sufficiency:
    """Return the classifier that ships under a name, or that lies in a folder.

    Raises
    ------
    ClassifierError
        There is none, or it cannot be read.
    """
    from lm_eval_tandem.judge import artefact

    shipped = _paths.classifiers() / name
    return artefact.load(shipped if shipped.is_dir() else Path(name).expanduser())


def find(comparisons: Sequence[Comparison], folders: Sequence[Path]) -> Sufficiency | None:
    """Return the classifier of the first cascade whose classifier ships with the package or lies below the folders.

    Its files have to be those that the cascade ran with, by their checksum; None if no such classifier is found.
    """
    from lm_eval_tandem.judge import artefact

    for cascade in [comparison.cascade for comparison in comparisons]:
        checksum = None if cascade is None else cascade.classifier_facts.get("sha256")
        if cascade is None or checksum is None:
            continue
        name = cascade.description["classifier"]
        below = [file.parent for folder in folders for file in folder.rglob("config.json")]
        for candidate in (_paths.classifiers() / name, *sorted(below)):
            if candidate.name == name and has_checksum(candidate / "config.json", checksum):
                return artefact.load(candidate)
    return None


def has_checksum(config_file: Path, checksum: str) -> bool:
    """Whether a file is the configuration of the classifier with this checksum."""
    if not config_file.is_file():
        return False
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError:
        return False  # some other config.json
    return isinstance(config, dict) and config.get("sha256") == checksum
