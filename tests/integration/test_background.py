"""Nothing dies silently: a background job that fails ends its service, with exit code 1 and a line that says why."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from support import failing_service

pytestmark = pytest.mark.stack

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("what", ["registry", "heartbeats", "replies"])
async def test_a_background_job_that_fails_ends_the_service(backbone, what):
    settings = backbone.settings()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        failing_service.__file__,
        what,
        env={
            **os.environ,
            **backbone.environment,
            "AIAAS_TOPIC_PREFIX": settings.topic_prefix,
            "AIAAS_LOG_FORMAT": "json",
            "PYTHONPATH": str(ROOT),
        },
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, told = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:  # it would serve, and look for its Kafka, for ever
            process.kill()
    assert process.returncode == 1, told.decode()
    *_, last = (json.loads(line) for line in told.decode().splitlines())
    assert (last["event"], last["level"]) == ("stopped by an error", "error")
    assert last["error"] == "ValueError('a bug in the background')"
    assert "in fail" in last["exception"]
