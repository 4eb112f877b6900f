"""Whether a worker takes part in a model: it is in the model's consumer group while it has what its versions need.

A worker without an engine that a ready version needs takes none of the model's requests, since Kafka gives records to
members of the group whatever they can do: others, who have it, get all of them. It says what it has in its heartbeat.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shared import logs

if TYPE_CHECKING:
    from collections.abc import Collection

    from services.worker.intake import Intake
    from shared.registry import Model


def lacking(model: Model, engines: Collection[str]) -> set[str]:
    """The engines that ready versions of a model need, and that are not here."""
    if model.retired or model.unloaded:
        return set()  # its requests fail fast, which needs none
    needed = {version.serving.engine for version in model.versions.values() if version.state == "ready"}
    return needed - set(engines)


class Partaking:
    """One model's intake, running or not."""

    def __init__(self, name: str, intake: Intake) -> None:
        self._name = name
        self._intake = intake
        self._able = asyncio.Event()
        self._unable = asyncio.Event()

    def say(self, missing: Collection[str]) -> None:
        """What is missing here; nothing: it takes part."""
        if missing and not self._unable.is_set():
            logs.get().warning("engine missing: another worker has to serve it", model=self._name, engines=[*missing])
        if missing:
            self._able.clear()
            self._unable.set()
        else:
            self._unable.clear()
            self._able.set()

    async def run(self) -> None:
        """Take part while able, until cancelled; then drain.

        Raises:
            Whatever ends the intake.
        """
        while True:
            await self._able.wait()
            taking = asyncio.create_task(self._intake.run(), name=f"intake of {self._name}")
            unable = asyncio.create_task(self._unable.wait(), name="engine watch")
            try:
                await asyncio.wait({taking, unable}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                unable.cancel()
                taking.cancel()
                await asyncio.wait({taking, unable})
            if not taking.cancelled() and (failure := taking.exception()) is not None:
                raise failure
