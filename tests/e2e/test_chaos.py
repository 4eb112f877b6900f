"""What happens to requests while processes of the stack die, hang and come back. `support.chaos` has the rules.

The full size is a command: `python -m benchmarks.chaos --requests 10000`.
"""

from __future__ import annotations

import onnxruntime
import pytest

from services.cli.local import standard_services
from support import uploads
from support.chaos import (
    THE_FULL_STORM,
    audit,
    hang_redis,
    kill_the_gateway,
    restart_the_gateway,
    storm,
)
from support.front_door import front_door
from support.local import local_stack

pytestmark = [pytest.mark.stack, pytest.mark.chaos]
MODEL = uploads.mlp().SerializeToString()


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A stack with servers of its own, since they are killed. fp32 serves: it has one right answer."""
    with pytest.MonkeyPatch.context() as patched:
        for given in ("AIAAS_KAFKA_BOOTSTRAP_SERVERS", "AIAAS_REDIS_URL"):
            patched.delenv(given, raising=False)
        directory = tmp_path_factory.mktemp("chaos")
        with local_stack(directory, standard_services(2), service_env={"AIAAS_MIN_SPEEDUP": "1e9"}) as running:
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
