"""Configurations in YAML, read so that nothing in them silently becomes something else."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from lm_eval_tandem.errors import ArgumentError, without_content

NUMBERS_WITH_COLONS = "tag:lm-eval-tandem,2026:numbers-with-colons"


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, for which 40:80 is text, as in YAML 1.2, and which refuses an entry that is given twice.

    YAML 1.1 reads whole numbers with colons between them as one number in base 60.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping; raises `yaml.constructor.ConstructorError` where it holds an entry twice."""
        names = set[str]()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in names:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


def text_of(loader: Loader, node: yaml.ScalarNode) -> str:
    """The text of a scalar, as it is written."""
    return str(loader.construct_scalar(node))


Loader.yaml_implicit_resolvers = {  # the first that matches is taken
    first: [(NUMBERS_WITH_COLONS, re.compile(r"^[-+]?[0-9_]+(:[0-9_]+)+(\.[0-9_]*)?$")), *resolvers]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_constructor(NUMBERS_WITH_COLONS, text_of)


def read_yaml(path: Path, named: str = "") -> Any:
    """The content of a YAML file; None of an empty one.

    Parameters
    ----------
    path
        The file.
    named
        How messages name it; "" for its path.

    Raises
    ------
    ArgumentError
        It cannot be read, or holds an entry twice. The message quotes no line, in which a key might be.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506 - a safe loader
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ArgumentError(f"{named or path} cannot be read ({without_content(error)}); give a YAML file.") from None
