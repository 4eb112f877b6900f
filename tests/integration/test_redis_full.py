"""A Redis that fills up (`noeviction`): answers are kept for less, and a full one counts as down, and comes back."""

from __future__ import annotations

import pytest
from redis import Redis

from shared import replies
from shared.errors import RepliesUnavailable
from shared.replies import Claim
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


async def test_answers_are_kept_for_less_while_redis_fills_and_their_claims_no_longer(backbone, tmp_path, monkeypatch):
    monkeypatch.delenv("AIAAS_REDIS_URL", raising=False)
    with local_stack(tmp_path, kafka_bootstrap_servers=backbone.bootstrap_servers) as running:
        url = running.environment["AIAAS_REDIS_URL"]
        settings = backbone.settings(redis_url=url, result_ttl_s=1000, result_ttl_least_s=50)
        with Redis.from_url(url) as redis:
            async with replies.connect(settings) as there:

                async def ttls_of(request_id: str) -> tuple[int, int]:
                    await there.put([Result(id=request_id, status="cancelled", model_name="m")])
                    return tuple(redis.ttl(f"aiaas:{kind}:m:{request_id}") for kind in ("claim", "result"))

                await there.claim("m", "early", Claim("t", 0, 0, None, ""))
                await there.claim("m", "late", Claim("t", 0, 1, None, ""))
                assert (there.kept_s, min(await ttls_of("early")) > 990) == (1000, True)
                redis.config_set("maxmemory", redis.info("memory")["used_memory"] * 4 // 3)  # three quarters are used
                await eventually(lambda: _pinged(there, 50))
                assert all(0 < ttl_s <= 50 for ttl_s in await ttls_of("late"))
                redis.config_set("maxmemory", 1024**3)
                await eventually(lambda: _pinged(there, 1000))


async def _pinged(there: replies.Replies, kept_s: int) -> bool:
    await there.ping()
    return there.kept_s == kept_s
