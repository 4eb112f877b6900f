"""The monitor's state on disk: folds, their offsets, and the history's files, in one file, replaced as a whole.

A reader sees the file before or after a write, never half of it: written beside it, flushed to disk, then renamed.
A snapshot names the log it was folded from; one that is damaged, of another form or of another log is set aside under
another name, with a log line, and the fold starts from the earliest record. JSON because its integers have no bound,
and people can read it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import msgspec

from services.monitor.alerts import Alerts
from services.monitor.drift import Drift
from services.monitor.fold import Ignored, OutcomeFold, Series
from services.monitor.histogram import BOUNDS_NS
from services.monitor.history import Manifest
from services.monitor.measurements import Measurements
from shared import logs
from shared.outcomes import Watermarks

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Snapshot:
    """What is stored; `log` names the cluster and topic that the offsets are of."""

    log: str
    series: dict[str, Series]
    ignored: Counter[Ignored]
    watermarks: list[tuple[str, int, int]]
    """The highest accepted offset of each request partition: topic, partition, offset."""
    offsets: dict[int, int]
    measurements: Measurements
    history: Manifest
    alerts: Alerts
    drift: Drift
    format: Literal[3] = 3
    bounds_ns: tuple[int, ...] = BOUNDS_NS
    saved_ns: int = field(default_factory=time.time_ns)


def _counter(kind: Any, counts: Any) -> Any:
    """A `Counter`, which msgspec writes as the dictionary that it is, but does not read."""
    if get_origin(kind) is not Counter:
        raise TypeError(f"{kind} is no part of a snapshot")
    return Counter(msgspec.convert(counts, GenericAlias(dict, (*get_args(kind), int)), str_keys=True))


_DECODER = msgspec.json.Decoder(Snapshot, dec_hook=_counter)


@dataclass(frozen=True)
class Stored:
    """What a snapshot holds, as it is used."""

    outcomes: OutcomeFold = field(default_factory=OutcomeFold)
    measurements: Measurements = field(default_factory=Measurements)
    history: Manifest = field(default_factory=Manifest)
    alerts: Alerts = field(default_factory=Alerts)
    drift: Drift = field(default_factory=Drift)


def encode(log: str, stored: Stored) -> bytes:
    """The state as it is now, as bytes."""
    outcomes = stored.outcomes
    rows = [(*at, highest) for at, highest in outcomes.watermarks.highest.items()]
    return msgspec.json.encode(
        Snapshot(
            log,
            outcomes.series,
            outcomes.ignored,
            rows,
            outcomes.offsets,
            stored.measurements,
            stored.history,
            stored.alerts,
            stored.drift,
        )
    )


def decode(data: bytes, log: str) -> Stored:
    """The inverse of `encode`.

    Raises:
        ValueError: damaged, of another form, or of another log.
    """
    snapshot = _DECODER.decode(data)  # its DecodeError is a ValueError
    if snapshot.log != log:
        raise ValueError(f"it is of {snapshot.log}, and this is {log}")
    if snapshot.bounds_ns != BOUNDS_NS:
        raise ValueError("its histograms have other bounds")
    watermarks = Watermarks({(topic, partition): highest for topic, partition, highest in snapshot.watermarks})
    outcomes = OutcomeFold(snapshot.series, snapshot.ignored, watermarks, snapshot.offsets)
    return Stored(outcomes, snapshot.measurements, snapshot.history, snapshot.alerts, snapshot.drift)


class Snapshots:
    """The snapshot file of one monitor."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing = asyncio.Lock()

    def load(self, log: str) -> Stored | None:
        """What was stored of this log, or None to start from the earliest record."""
        try:
            return decode(self._path.read_bytes(), log)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as err:
            self.set_aside(str(err))
            return None

    def set_aside(self, reason: str) -> None:
        """Keep a snapshot that can't be used for people to look at."""
        aside = self._path.with_suffix(f".{time.time_ns()}.unusable")
        logs.get().error("snapshot set aside, folding from the earliest record", reason=reason, kept_as=str(aside))
        self._path.rename(aside)

    async def save(self, data: bytes) -> bool:
        """Store `data` (see `encode`); whether it is on disk now. A full disk is logged, and tried again next time.

        A save that is cancelled is still finished before the next begins: its thread can't be stopped.
        """
        return await asyncio.shield(self._save(data))

    async def _save(self, data: bytes) -> bool:
        async with self._writing:
            try:
                await asyncio.to_thread(_replace, self._path, data)
            except OSError as err:
                logs.get().error("snapshot not saved", path=str(self._path), error=repr(err))
                return False
        return True


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".writing")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
