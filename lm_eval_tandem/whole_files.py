"""Files that are there as a whole or not at all, whenever a program ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside the file to write to, which becomes the file in one step when the block ends.

    The folder is created where it does not exist. Where the block raises, what was written is removed, and a file that
    was there before stays as it is.

    Raises
    ------
    OSError
        The folder cannot be created, or the file cannot be replaced.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "scores" / "all.txt"
    >>> with replacing(file) as unfinished:
    ...     _ = unfinished.write_text("0.9")
    ...     file.exists()
    False
    >>> file.read_text()
    '0.9'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
