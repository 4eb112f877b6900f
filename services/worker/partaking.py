"""Whether a worker takes part in a model: it is in the model's consumer group while it has what its versions need.

A worker without an engine that a ready version needs takes none of the model's requests, since Kafka gives records to
members of the group whatever they can do: others, who have it, get all of them. It says what it has in its heartbeat.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from shared import logs
from shared.runtime_config import TORCH

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from services.worker.intake import Intake
    from shared.registry import Model

ANYONE: Final = "*"


def lacking(model: Model, engines: Collection[str], tenants: Mapping[str, Collection[str]]) -> set[str]:
    """What ready versions of a model need, and what is not here: engines, and leave to load a tenant's programs.

    `tenants` are those who have that leave, by the format of what they uploaded.
    """
    if model.retired or model.unloaded:
        return set()  # its requests fail fast, which needs none
    ready = [version for version in model.versions.values() if version.state == "ready"]
    missing = {version.serving.engine for version in ready} - set(engines)
    for version in ready:
        if version.serving.engine != TORCH:
            continue
        own = version.program_format
        let = tenants.get(own, ())
        if ANYONE not in let and version.tenant not in let:
            missing.add(f"AIAAS_{own.upper()}_TENANTS with {version.tenant!r}")
    return missing


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
            logs.get().warning("another worker has to serve it", model=self._name, missing=sorted(missing))
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
