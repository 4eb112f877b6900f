"""The request topic of every model is there as soon as the model is in the registry's log.

Whoever folds an upload first creates it; that is harmless to repeat. A request that overtakes the fold waits for it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shared import kafka
from shared.errors import LogUnavailable

if TYPE_CHECKING:
    from shared.registry_log import RegistryLog
    from shared.settings import PlatformSettings


class RequestTopics:
    """Which request topics are known to be there."""

    def __init__(self, settings: PlatformSettings) -> None:
        self._settings = settings
        self._there: set[str] = set()
        self._creating = asyncio.Lock()

    async def follow(self, log: RegistryLog) -> None:
        """Create the topics of models as they appear, until cancelled."""
        async for registry in log.changes():
            await self._create(*registry.models.keys() - self._there)

    def has(self, model: str) -> bool:
        """Whether the model's topic is known to be there."""
        return model in self._there

    async def ensure(self, model: str, timeout_s: float) -> None:
        """Return when the model's topic is there.

        Raises:
            LogUnavailable: Kafka did not create it in time.
        """
        if self.has(model):
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._create(model)
        except TimeoutError as err:
            raise LogUnavailable(f"Kafka did not create the request topic of {model!r} in time") from err

    async def _create(self, *models: str) -> None:
        async with self._creating:
            missing = [model for model in models if model not in self._there]
            if missing:
                await kafka.ensure_topics(self._settings, *missing)
                self._there.update(missing)
