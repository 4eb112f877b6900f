"""A full Redis (`noeviction`) refuses writes while it still answers: it must count as down, and come back."""

from __future__ import annotations

import pytest
from redis import Redis

from shared import replies
from shared.errors import RepliesUnavailable
from shared.reply_waiter import ReplyWaiter
from shared.results import Result
from support.local import local_stack
from support.waiting import eventually

pytestmark = pytest.mark.stack


async def test_a_full_redis_is_down_until_there_is_room(backbone, tmp_path, monkeypatch):
    monkeypatch.delenv("AIAAS_REDIS_URL", raising=False)  # a server of its own: others would not like it full
    servers = {"kafka_bootstrap_servers": backbone.bootstrap_servers}
    with local_stack(tmp_path, **servers) as running:
        url = running.environment["AIAAS_REDIS_URL"]
        async with (
            replies.connect(backbone.settings(redis_url=url)) as there,
            ReplyWaiter(there, "gateway-1") as waiter,
        ):
            await eventually(lambda: waiter.healthy)
            with Redis.from_url(url) as redis:
                redis.config_set("maxmemory", 1)  # full from here on
                assert redis.ping()
                await eventually(lambda: not waiter.healthy)
                with pytest.raises(RepliesUnavailable):
                    await there.put([Result(id="r", status="cancelled", model_name="m")])
                redis.config_set("maxmemory", 16 * 1024**2)
                await eventually(lambda: waiter.healthy)
            [result] = await there.put([Result(id="r", status="cancelled", model_name="m")])
            assert result.status == "cancelled"
