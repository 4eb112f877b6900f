"""What the monitor tells of a request that went through the whole stack."""

from __future__ import annotations

import httpx
import pytest

from support import uploads
from support.front_door import OK, row
from support.waiting import eventually

pytestmark = pytest.mark.stack


async def test_a_request_its_rows_and_its_worker_are_told(door, stack, backbone):
    name = backbone.model()
    await door.serve(name, uploads.mlp().SerializeToString())
    answers = [await door.infer(name, row(number)) for number in range(20)]
    assert {answer.status for answer in answers} == {OK}
    async with httpx.AsyncClient(base_url=stack.monitor_url, timeout=30) as monitor:

        async def told():
            response = await monitor.get(f"/v1/requests/{answers[-1].id}")
            return response.json()["outcomes"] if response.is_success else None

        async def seen():
            watched = (await monitor.get("/v1/drift", params={"model": name})).json()["models"]
            return watched and watched[0]["rows"] >= 20

        async def counted():
            response = await monitor.get(f"/v1/models/{name}/series", params={"from": "-10m"})
            series = response.json() if response.is_success else None
            return series if series and series["totals"]["succeeded"] >= 20 else None

        async def up():
            services = (await monitor.get("/v1/overview")).json()["services"]
            return {each["service"] for each in services if each["up"]} >= {"gateway", "worker", "optimizer", "monitor"}

        [story] = await eventually(told, within_s=90)
        assert [each["what"] for each in story["story"]] == [
            "enqueued",
            "taken",
            "run",
            "computed",
            "answered",
            "recorded",
        ]
        assert story["timings_s"]["total"] < 30
        await eventually(seen, within_s=90)
        series = await eventually(counted, within_s=90)
        assert series["totals"]["succeeded"] == sum(series["requests"]["succeeded"]) == 20
        await eventually(up, within_s=90, what="all services")
        report = await monitor.get("/v1/report", params={"from": "-10m", "model": name, "format": "md"})
        assert f"{name} version 1" in report.text
