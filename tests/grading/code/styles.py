"""Styles in which models write code into a response, made from a problem's own solution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Doc = dict[str, Any]


def module(doc: Doc) -> str:
    """Prompt and solution as one module."""
    return f"{doc['prompt']}{doc['canonical_solution']}"


def with_prose(doc: Doc) -> str:
    """A sketch that is not the answer, the answer, an example, and prose around them."""
    name = doc["entry_point"]
    return (
        f"Sure! Let's think. A first idea would be\n\n```python\nresult = {name}(1)\n```\n\n### Solution\n\n"
        f"```python\n{module(doc)}\n```\n\nYou can call it like this:\n\n```python\nprint({name})\n```\n\n"
        "which prints\n\n```\n<function>\n```\nHope this helps."
    )


def after_thought(doc: Doc) -> str:
    """A thought with a wrong draft, then the answer."""
    draft = f"```python\ndef {doc['entry_point']}(*arguments):\n    return None\n```"
    return f"<think>\nMaybe\n{draft}\nNo.\n</think>\n\n```python\n{module(doc)}\n```"


STYLES: dict[str, Callable[[Doc], str]] = {
    "bare continuation": lambda doc: doc["canonical_solution"],
    "fenced": lambda doc: f"```python\n{module(doc)}```",
    "fenced with prose": with_prose,
    "after a think block": after_thought,
    "whole module": module,
}
