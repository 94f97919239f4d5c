"""Reading JSON-lines files, plain or compressed, and naming what is wrong with a file in a few words."""

from __future__ import annotations

import lzma
from pathlib import Path

from lm_eval_tandem.errors import ArgumentError


def read_lines(file: Path) -> list[str]:
    """Return the non-empty lines of a JSON-lines file, plain or compressed with xz.

    Raises
    ------
    ArgumentError
        The file cannot be read, or has no such line.
    """
    try:
        content = file.read_bytes()
        text = (lzma.decompress(content) if file.suffix == ".xz" else content).decode()
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{file} cannot be read ({describe(error)}); run the harness again.") from None
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise ArgumentError(f"{file} holds no samples; run the harness again with --log_samples.")
    return lines


def describe(error: Exception) -> str:
    """Return why a file could not be read or written, in a few words and without its path."""
    return error.strerror or str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
