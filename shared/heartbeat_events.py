"""Facts of who is alive, and what it holds (topic `workers`)."""

from __future__ import annotations

from typing import Literal

from shared.events import Event, Fields, Finite, MachineClass, Sha256, Short


class LoadedModel(Fields):
    """A variant in memory."""

    model: str
    version: int
    variant: str
    artifact_sha256: str
    byte_size: int
    engine: Short = ""
    provider: Short = ""
    """The one that it got, whatever was asked for."""
    threads: int = 0
    session_sha256: Sha256 | None = None
    """Of the runtime configuration that it was loaded with; null where all is as the worker is set."""


class Heartbeat(Event):
    """An instance is alive. The topic is compacted by `instance`."""

    instance: str
    incarnation: str
    """Fresh at each start of the process: a restarted owner no longer holds its claims."""
    service: Literal["worker", "optimizer"]
    machine: MachineClass
    loaded: tuple[LoadedModel, ...] = ()
    registry_offset: int
    lag: dict[str, int] = {}
    """Records not yet taken, by model."""
    queued: dict[str, int] = {}
    """Records taken and not yet answered, by model."""
    answered: dict[str, int] = {}
    """Records that got their outcome since the start of the process, by model."""
    positions: dict[str, int] = {}
    """Offset of the first record not yet answered, by request partition (`topic/partition`) that this worker holds."""
    interval_s: Finite
    """The next one is due within this time."""
    tools: tuple[Short, ...] = ()
    """Libraries that an optimizer has beside those that all have: which formats it takes depends on them."""
