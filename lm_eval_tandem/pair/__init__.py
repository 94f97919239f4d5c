"""The bundled pair: a tiny mentor and a tiny intern, and where their weights lie."""

from pathlib import Path

MENTOR = Path(__file__).parent / "mentor"
INTERN = Path(__file__).parent / "intern"

__all__ = ["INTERN", "MENTOR"]
