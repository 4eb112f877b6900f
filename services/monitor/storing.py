"""Storing the state: new rows into the history, then the snapshot that names their files, then what both make void.

Everything in a snapshot is of one moment, without an await: the offsets, the folds, and which rows are in files. The
files are written before the snapshot, so that it never names one that is not there; see `services.monitor.history`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from services.monitor.snapshot import Stored, encode
from shared import logs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from aiokafka import TopicPartition

    from services.monitor.history import History
    from services.monitor.snapshot import Snapshots
    from services.monitor.state import State
    from shared.broker import Done


class Storing:
    """Stores the state of one monitor. One thing at a time: saving, or merging."""

    def __init__(
        self,
        state: State,
        history: History,
        snapshots: Snapshots,
        log_name: str,
        commit: Callable[[Mapping[TopicPartition, int]], Awaitable[None]],
        done: Done,
    ) -> None:
        self._state = state
        self._history = history
        self._snapshots = snapshots
        self._log_name = log_name
        self._commit = commit
        self._done = done
        self._turn = asyncio.Lock()

    async def save(self) -> bool:
        """Store the state, then acknowledge the metric events that are in it; whether it is stored.

        A save that is cancelled is still finished before the next begins: its thread can't be stopped.
        """
        return await asyncio.shield(self._save())

    async def _save(self) -> bool:
        async with self._turn:
            state, history = self._state, self._history
            offsets, new = self._done.offsets(), state.recorder.take()
            writing = history.begin(new)
            stored = Stored(state.outcomes, state.measurements, writing.manifest, state.alerts, state.drift)
            data = encode(self._log_name, stored)
            try:
                await asyncio.to_thread(history.write, writing)
            except OSError as err:
                logs.get().error("history not saved", path=str(history.directory), error=repr(err))
                history.done(None)
                state.recorder.back(new)
                return False
            garbage = history.done(writing)
            if not await self._snapshots.save(data):
                return False
            history.delete(garbage)
            await self._commit(offsets)
            return True

    async def merge(self) -> None:
        """Merge, roll up and drop what is due."""
        await asyncio.shield(self._merge())

    async def _merge(self) -> None:
        history = self._history
        while True:
            async with self._turn:
                due = history.due(time.time())
                if due is None:
                    return
                try:
                    history.replaced(await asyncio.to_thread(history.compacted, *due))
                except OSError as err:
                    logs.get().error("history not merged", path=str(history.directory), error=repr(err))
                    return
