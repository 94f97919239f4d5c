"""An engine whose errors name its role, so that a client learns which model failed, and nothing else of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lm_eval_tandem.engines import DEFAULT_VIEW, Completion, Engine, Prompt, Sampling, ScoringView, TokenStats
from lm_eval_tandem.errors import EngineError


class RoleEngine:
    """The same engine (see `engines.Engine`), whose calls note its role in the errors that they raise.

    Parameters
    ----------
    engine
        Of one model.
    role
        "mentor" or "intern".
    """

    def __init__(self, engine: Engine, role: str) -> None:
        self._engine, self._role = engine, role

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """See `Engine.generate`."""
        with self._noted():
            return await self._engine.generate(prompt, sampling)

    async def score(self, prompt: Prompt, view: ScoringView = DEFAULT_VIEW) -> TokenStats:
        """See `Engine.score`."""
        with self._noted():
            return await self._engine.score(prompt, view)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except EngineError as error:
            error.role = self._role
            raise
