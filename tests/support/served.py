"""A model that has answered: requests on all partitions of its topic, their outcomes and results."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared.topics import OUTCOMES
from support.onnx_models import linear
from support.worker_rig import Rig, rig, worker_running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.worker.settings import WorkerSettings


def body(number: int) -> bytes:
    """The request of a number, whose id is `r{number}`."""
    data = [number / 7, 1.0, -2.0, 0.5]
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": data}]}).encode()


@dataclass
class Served:
    """A model and those who answered for it."""

    settings: WorkerSettings
    model: str
    rig: Rig
    sent: int = 0

    @property
    def topic(self) -> str:
        """Its request topic."""
        return self.settings.topics.requests(self.model)

    async def ask(self, count: int, **headers: Any) -> list[tuple[int, int]]:
        """So many more requests; returns where they lie when all have their outcome."""
        numbers = range(self.sent, self.sent + count)
        self.sent += count
        places = [await self.rig.send(self.model, body(n), partition=n % 4, ce_id=f"r{n}", **headers) for n in numbers]
        await self.rig.outcomes(self.model, self.sent, within_s=60)
        return places

    async def ends(self) -> dict[int, int]:
        """Where the outcome log ends, by partition."""
        ends: dict[int, int] = {}
        for record in await self.rig.read(self.settings.topics.name(OUTCOMES)):
            ends[record.partition] = record.offset + 1
        return ends


@asynccontextmanager
async def serving(settings: WorkerSettings, model: str) -> AsyncIterator[Served]:
    """A worker that holds a linear model of this name."""
    async with rig(settings) as there:
        await there.upload(model, linear())
        async with worker_running(settings):
            yield Served(settings, model, there)
