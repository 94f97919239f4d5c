"""Real benchmark rows, which are no part of the project: a folder beside the checkout, or `TANDEM_TEST_DATA`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(os.environ.get("TANDEM_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a file; the test is skipped where there is none."""
    file = FOLDER / name
    if not file.is_file():
        pytest.skip(f"no {file}; set TANDEM_TEST_DATA to a folder that has {name}")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
