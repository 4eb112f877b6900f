"""What happens to requests while processes of the stack die, hang and come back.

`support.storm` makes the storm, `support.audit` has the rules; `python -m benchmarks.chaos` is the full size.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

import onnxruntime
import pytest

from services.cli.local import standard_services
from services.cli.local.errors import KafkaUnavailableError
from support import uploads
from support.audit import audit
from support.front_door import front_door
from support.local import local_stack
from support.storm import THE_FULL_STORM, hang_redis, kill_the_gateway, restart_the_gateway, storm

pytestmark = [pytest.mark.stack, pytest.mark.chaos]
MODEL = uploads.mlp().SerializeToString()


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A stack with servers of its own, since they are killed. fp32 serves: it has one right answer."""
    with pytest.MonkeyPatch.context() as patched, ExitStack() as started:
        for given in ("AIAAS_KAFKA_BOOTSTRAP_SERVERS", "AIAAS_REDIS_URL"):
            patched.delenv(given, raising=False)
        own = local_stack(
            tmp_path_factory.mktemp("chaos"),
            standard_services(2),
            service_env={"AIAAS_MIN_GAIN": "1000", "AIAAS_TIME_BUDGET_S": "5"},
            local_kafka="apache",
        )
        try:
            running = started.enter_context(own)
        except KafkaUnavailableError as err:
            if os.environ.get("AIAAS_LOCAL_KAFKA") == "apache":
                raise
            pytest.skip(f"the embedded broker keeps nothing when it is killed, and there is no other: {err.message}")
        yield running


@pytest.fixture
async def door(stack):
    async with front_door(stack.environment) as there:
        yield there


def directly(inputs):
    return onnxruntime.InferenceSession(MODEL).run(None, inputs)[0]


async def test_every_acknowledged_request_has_one_outcome_and_the_right_result(stack, door):
    await door.serve("storm", MODEL)
    raged = await storm(stack, door, "storm", requests=600, rate_per_s=12, disturbances=THE_FULL_STORM)
    found = await audit(raged, directly)
    assert found.violations == [], raged.log


async def test_a_hung_redis_and_restarted_gateways_lose_nothing(stack, door):
    await door.serve("hung", MODEL)
    disturbances = (hang_redis, restart_the_gateway, kill_the_gateway)
    raged = await storm(stack, door, "hung", requests=200, rate_per_s=10, disturbances=disturbances)
    found = await audit(raged, directly, broken=True)
    assert found.violations == [], raged.log
