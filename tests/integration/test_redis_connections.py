"""Connections to Redis: what a burst takes of them it gives back."""

from __future__ import annotations

import asyncio

import pytest

from shared import replies
from shared.replies import Claim
from shared.settings import PlatformSettings

pytestmark = pytest.mark.stack


async def test_after_a_burst_of_scripts_everybody_else_finds_a_connection(backbone):
    settings = backbone.settings(PlatformSettings, redis_timeout_s=1)
    model = backbone.model()
    async with replies.connect(settings) as redis:
        burst = [
            redis.screen(model, {f"r{number}": Claim("t.requests.m", 0, number, None, "ab" * 32)})
            for number in range(200)
        ]
        await asyncio.gather(*burst)
        assert await asyncio.gather(*(redis.running(model) for _ in range(20))) == [set()] * 20
