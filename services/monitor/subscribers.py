"""`metrics`, by FastStream: each event goes into the measurements, and nothing else happens here."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from shared import broker, topics

if TYPE_CHECKING:
    from collections.abc import Callable

    from faststream.kafka import KafkaBroker

    from services.monitor.state import State
    from shared.settings import PlatformSettings

GROUP = "monitor"


def subscribe(
    kafka: KafkaBroker, settings: PlatformSettings, state: State, now_ns: Callable[[], int] = time.time_ns
) -> None:
    """Add the monitor's subscribers to a broker."""

    @broker.subscriber(kafka, settings, topics.METRICS, GROUP)
    async def metrics(event: Any) -> None:  # a `MetricEvent`: FastStream knows no types but pydantic's
        """What instances measure of themselves and their hosts."""
        state.measurements.add(event, now_ns())
