"""Facts of the speed on machines of another class than the optimizer's (topic `measurements`)."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from shared.artifacts import Artifact
from shared.events import Event, Latency, ModelName, Short, Text, VersionNumber
from shared.runtime_config import RuntimeConfig
from shared.signature import Signature

MAX_MEASURED: Final = 64


class MeasurementRequested(Event):
    """An optimizer asks one worker, of another class than its own, how fast forms of a model are there."""

    id: Short
    """Of the question; the answer repeats it."""
    model: ModelName
    version: VersionNumber
    asked_by: Short
    """The optimizer, with its incarnation."""
    worker: Short
    """Whom it asks, with its incarnation: one that has started anew since then does not answer."""
    reference: Artifact
    candidates: Annotated[dict[Short, Artifact], Meta(max_length=MAX_MEASURED)]
    signature: Signature
    inputs: Artifact
    """What to run it on, a `.npz`: `{batch size}.{place of the input in the signature}`."""
    timeout_s: Annotated[float, Meta(gt=0, le=3600)]
    """Nobody waits for the answer any longer."""
    runtime: RuntimeConfig | None = None
    """How the version would be run."""


class MeasurementTaken(Event):
    """How fast they are there, or why that is not known."""

    id: Short
    worker: Short
    latencies: Annotated[dict[Short, tuple[Latency, ...]], Meta(max_length=MAX_MEASURED)] = {}
    """By candidate, each measured by turns with the reference."""
    problems: Annotated[dict[Short, Text], Meta(max_length=MAX_MEASURED)] = {}
    """By candidate that does not run there, why."""
    failed: Text = ""
    """Why nothing was measured."""
