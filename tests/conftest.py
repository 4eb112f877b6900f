"""Fixtures of all tests.

`backbone` is the real Kafka and Redis of the session: the ones in `AIAAS_KAFKA_BOOTSTRAP_SERVERS` and
`AIAAS_REDIS_URL`, or those of a local stack without services. `stack` adds the services. Both live outside the event
loops of tests. In CI `AIAAS_LOCAL_KAFKA=apache` forbids the fallback to the embedded broker.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import ExitStack

import hypothesis
import pytest

from support.backbone import Backbone

# How long an example takes says more about the machine's load than about the code. The same examples each time, so that
# what fails is the change; AIAAS_TEST_FRESH_EXAMPLES=1 looks for others.
FRESH = bool(os.environ.get("AIAAS_TEST_FRESH_EXAMPLES"))
hypothesis.settings.register_profile("aiaas", deadline=None, derandomize=not FRESH)
hypothesis.settings.load_profile("aiaas")

SERVERS = ("AIAAS_KAFKA_BOOTSTRAP_SERVERS", "AIAAS_REDIS_URL")

# Brokers of tests do little: what they would compile thoroughly would never pay.
os.environ.setdefault("AIAAS_LOCAL_KAFKA_JVM_OPTIONS", "-XX:TieredStopAtLevel=1")


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    directory = tmp_path_factory.mktemp("backbone")
    with ExitStack() as servers:
        environment = {name: os.environ.get(name, "") for name in SERVERS}
        if not all(environment.values()):
            from support.local import local_stack  # noqa: PLC0415 - only who starts one pays for it

            environment = servers.enter_context(local_stack(directory / "servers")).environment
        there = Backbone(environment, directory)
        yield there
        asyncio.run(there.clean())


@pytest.fixture
def apache_kafka(backbone):
    """Skips a test of what only Apache Kafka does."""
    if backbone.embedded:
        pytest.skip("the embedded broker knows no exact ends, LogAppendTime or max.message.bytes: needs Apache Kafka")


@pytest.fixture(scope="session")
def stack(backbone, tmp_path_factory):
    """All services over the backbone's servers: gateway, two workers, optimizer, monitor.

    fp32 always serves, since only that has one right answer; copies of replies may go to topics below a prefix.
    """
    from services.cli.local import standard_services  # noqa: PLC0415 - as above
    from support.local import local_stack  # noqa: PLC0415 - as above

    settings = backbone.settings()
    with local_stack(
        tmp_path_factory.mktemp("stack"),
        standard_services(workers=2),
        service_env={
            "AIAAS_TIME_BUDGET_S": "5",  # what candidates there are is not what these tests are about
            **{name: value for name, value in backbone.environment.items() if name.startswith("AIAAS_KAFKA_")},
            "AIAAS_TOPIC_PREFIX": settings.topic_prefix,
            "AIAAS_MIN_GAIN": "1000",
            "AIAAS_PT2_TENANTS": '["*"]',
            "AIAAS_TORCHSCRIPT_TENANTS": '["*"]',
            "AIAAS_AUDIT_INTERVAL_S": "2",
            "AIAAS_REPLY_TOPIC_PREFIXES": json.dumps([f"{backbone.model()}-copies."]),
        },
        kafka_bootstrap_servers=settings.kafka_bootstrap_servers,
        redis_url=settings.redis_url,
    ) as running:
        yield running
