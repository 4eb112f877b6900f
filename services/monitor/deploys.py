"""Deploys: what the `models` log says, as lines of the timeline. Read anew at each start, since the log is kept."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from services.monitor.queries import Happening
from shared import events as ev

if TYPE_CHECKING:
    from shared.registry import Entry, Registry

MOST: Final = 10_000


class Deploys:
    """The newest lines, and the registry."""

    def __init__(self) -> None:
        self.lines: deque[Happening] = deque(maxlen=MOST)

    def heard(self, entry: Entry, registry: Registry) -> None:
        """Take in a record that changed something."""
        event = entry.event
        if isinstance(event, ev.ModelEvent):
            told = _line(event, registry)
            if told is not None:
                text, version = told
                self.lines.append(Happening(entry.timestamp_ms / 1000, "deploy", text, event.model, version))

    def between(self, start_s: float, end_s: float) -> list[Happening]:
        """The lines of a span, oldest first."""
        return [line for line in self.lines if start_s <= line.at_s < end_s]


def _line(event: ev.ModelEvent, registry: Registry) -> tuple[str, int | None] | None:
    """What to say, and of which version; None for what is no deploy."""
    name, model = event.model, registry.model(event.model)
    match event:
        case ev.ModelUploaded() | ev.UpdateRequested():
            number = model.uploads.get(event.upload_id)
            what = "uploaded" if isinstance(event, ev.ModelUploaded) else f"to be trained from version {event.parent}"
            return f"{name} version {number} was {what}", number
        case ev.ModelReady(version=number, variant=variant):
            served = ", and answers now" if model.active == number else ""
            return f"{name} version {number} is ready as {variant}{served}", number
        case ev.ModelRejected(version=number, reason=reason):
            return f"{name} version {number} was rejected: {reason[:200]}", number
        case ev.ModelPromoted(version=number):
            return f"{name} version {number} was promoted", number
        case ev.TrafficSplit(weights=weights):
            split = ", ".join(f"version {number}: {weight}" for number, weight in sorted(weights.items()))
            return f"{name}: traffic is split ({split})", None
        case ev.ModelRolledBack():
            return f"{name} was rolled back to version {model.active}", model.active
        case ev.ModelRetired(version=number):
            return f"{name}{'' if number is None else f' version {number}'} was retired", number
        case ev.ModelUnloaded():
            return f"{name} was unloaded", None
        case ev.ModelLoaded():
            return f"{name} was loaded again", None
        case _:
            return None
