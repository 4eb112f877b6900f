"""Fixtures of tests with a monitor of their own. What it is told, `settings`, is a fixture of the test's module."""

from __future__ import annotations

import pytest

from shared import kafka
from support.monitor_process import Monitor


@pytest.fixture
def monitor(settings):
    monitor = Monitor(settings)
    yield monitor
    monitor.kill()


@pytest.fixture
async def producer(settings):
    """To the topics of the platform, and those of a model `m`."""
    await kafka.ensure_topics(settings)
    await kafka.ensure_topics(settings, "m")
    async with kafka.started(lambda: kafka.producer(settings), "test") as producer:
        yield producer
