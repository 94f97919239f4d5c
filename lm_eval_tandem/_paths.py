"""Folders of data, inside the package in a wheel and beside it in a checkout, and paths that models are named by."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def task_configs() -> Path:
    """The folder for lm-eval's `--include_path`."""
    return _folder("task_configs")


def classifiers() -> Path:
    """The folder of sufficiency classifiers, one folder each."""
    return _folder("classifiers")


def same_path(one: str | None, other: str) -> bool:
    """Whether two labels of models are paths to the same file or folder."""
    return one is not None and Path(one).expanduser().resolve() == Path(other).expanduser().resolve()
