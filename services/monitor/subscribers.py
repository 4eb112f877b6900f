"""`metrics`, by FastStream: each event goes into the measurements, and nothing else happens here."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from services.monitor import metering
from shared import broker, topics

if TYPE_CHECKING:
    from collections.abc import Callable

    from faststream.kafka import KafkaBroker

    from services.monitor.settings import MonitorSettings
    from services.monitor.state import State

GROUP = "monitor"


def subscribe(
    kafka: KafkaBroker, settings: MonitorSettings, state: State, now_ns: Callable[[], int] = time.time_ns
) -> None:
    """Add the monitor's subscribers to a broker."""

    @broker.subscriber(kafka, settings, topics.METRICS, GROUP)
    async def metrics(event: Any) -> None:  # a `MetricEvent`: FastStream knows no types but pydantic's
        """What instances measure of themselves and their hosts."""
        metering.take(state, event, now_ns(), settings.sensitivity)
