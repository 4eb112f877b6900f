"""An idempotent producer that survives its own failures.

An idempotent producer whose record was refused or given up numbers all later ones wrongly, for good
(`OutOfOrderSequenceNumber`): after a failed append it has to be replaced. Whoever appends asks for `producer` each
time, and tells `replace` of the one that failed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from aiokafka.errors import KafkaError

from shared import kafka, logs

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer

    from shared.settings import PlatformSettings

_STOP_S = 15.0


class SteadyProducer:
    """`producer` is the present one, started; `what` names it in the log; its batches have up to `batch_bytes`."""

    def __init__(self, settings: PlatformSettings, what: str, *, batch_bytes: int) -> None:
        self._settings = settings
        self._what = what
        self._batch_bytes = batch_bytes
        self._replacing = asyncio.Lock()
        self._stopping: set[asyncio.Task[None]] = set()
        self.producer: AIOKafkaProducer

    async def __aenter__(self) -> Self:
        self.producer = await self._start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.gather(_stop(self.producer), *self._stopping)

    async def replace(self, failed: AIOKafkaProducer) -> None:
        """Put another in the place of one whose append failed, unless somebody has."""
        async with self._replacing:
            if self.producer is failed:
                stopping = asyncio.create_task(_stop(failed))
                self._stopping.add(stopping)
                stopping.add_done_callback(self._stopping.discard)
                self.producer = await self._start()

    async def _start(self) -> AIOKafkaProducer:
        return await kafka.start(lambda: kafka.producer(self._settings, max_batch_size=self._batch_bytes), self._what)


async def _stop(producer: AIOKafkaProducer) -> None:
    """Stop a producer, which first tries to send what it still holds; not for ever."""
    try:
        async with asyncio.timeout(_STOP_S):
            await producer.stop()
    except (KafkaError, TimeoutError) as err:
        logs.get().warning("a producer did not stop cleanly", error=repr(err))
