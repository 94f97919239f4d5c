"""`make newest`: what setup.cfg asks for, without its upper bounds, and what is then newer than constraints.txt.

`python tests/newest.py` prints the requirements of the package and its extras, one a line. It needs nothing but Python.
`python tests/newest.py table`, in the environment that they are installed in, prints the table.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import sys
from pathlib import Path

LEFT_OUT = ("vllm", "docs")
"""Extras that the tests run without: vLLM has an environment of its own, and the documentation is not tested."""
CHECKOUT = Path(__file__).resolve().parents[1]


def unbounded() -> list[str]:
    """The requirements of the package and its extras, without upper bounds."""
    config = configparser.ConfigParser()
    config.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    extras = [names for extra, names in config["options.extras_require"].items() if extra not in LEFT_OUT]
    lines = "\n".join([config["options"]["install_requires"], *extras]).split()
    return [re.sub(r",?<=?[\w.]+", "", line) for line in dict.fromkeys(lines)]


def table() -> str:
    """Each pinned library that is installed in another version: its name, both versions."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    installed = {
        canonicalize_name(one.metadata["Name"]): one.version.partition("+")[0]
        for one in importlib.metadata.distributions()
    }
    rows = [("name", "pinned", "newest")]
    for line in (CHECKOUT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if "==" not in line or line.startswith("#"):
            continue
        pin = Requirement(line)
        newest = installed.get(canonicalize_name(pin.name))
        if newest and not pin.specifier.contains(newest, prereleases=True):
            rows.append((pin.name, str(pin.specifier).removeprefix("=="), newest))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


if __name__ == "__main__":
    print(table() if sys.argv[1:] == ["table"] else "\n".join(unbounded()))
