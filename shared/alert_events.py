"""Facts of what a person may want to look at (topic `alerts`)."""

from __future__ import annotations

from typing import Literal

from shared.events import Event, Finite, Short, Text


class AlertEvent(Event):
    """Something that a person may want to look at. The key of its record is `alert`."""

    alert: Short
    """Which one: the same from when it is raised until it is cleared."""
    rule: Short
    severity: Literal["warning", "critical"]
    model: Short | None = None
    version: int | None = None
    instance: Short | None = None
    value: Finite
    threshold: Finite
    """Which the value passed."""
    message: Text
    at_ns: int


class AlertRaised(AlertEvent):
    """The rule holds, and has for as long as it asks for."""


class AlertCleared(AlertEvent):
    """It holds no more."""
