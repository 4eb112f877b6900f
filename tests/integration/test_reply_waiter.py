"""Waiting for answers on a real Redis: woken by announcements, and by reading when they are lost."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

import pytest
from redis.asyncio import Redis

from shared import replies as module
from shared import reply_waiter
from shared.replies import ANNOUNCED_PAYLOAD_BYTES
from shared.reply_waiter import ReplyWaiter
from shared.results import Result
from shared.tensors import Tensor
from support.fake_replies import FakeReplies
from support.waiting import eventually

pytestmark = pytest.mark.stack


@pytest.fixture
def model(backbone):
    return backbone.model()


@pytest.fixture
async def replies(backbone):
    async with module.connect(backbone.settings()) as client:
        yield client


@pytest.fixture
async def waiter(replies, model):
    async with ReplyWaiter(replies, model) as waiting:
        await eventually(lambda: waiting.healthy)
        yield waiting


@pytest.fixture
def no_reading(monkeypatch):
    """Announcements alone wake who waits."""
    monkeypatch.setattr(reply_waiter, "_READ_INTERVAL_S", 3600.0)


def answer(model, request_id="r", size=8):
    tensor = Tensor("y", "UINT8", (size,), bytes(size))
    return Result(id=request_id, status="succeeded", model_name=model, model_version=1, outputs=(tensor,))


@pytest.mark.usefixtures("no_reading")
@pytest.mark.parametrize("size", [8, ANNOUNCED_PAYLOAD_BYTES])
async def test_an_announcement_wakes_who_waits(replies, model, size, backbone):
    async with ReplyWaiter(replies, model) as waiting:
        await subscribed(backbone, model)
        with waiting.expected(model, "r") as future:
            await replies.put([answer(model, size=size)], [model])
            assert await asyncio.wait_for(future, 5) == answer(model, size=size)


async def subscribed(backbone, channel):
    redis = Redis.from_url(backbone.redis_url)
    try:
        await eventually(lambda: number_of_subscribers(redis, channel))
    finally:
        await redis.aclose()


async def number_of_subscribers(redis, channel):
    [(_, count)] = await redis.pubsub_numsub(f"aiaas:replies:{channel}")
    return count


async def test_an_answer_whose_announcement_is_lost_is_read(replies, model, waiter):
    started_s = time.monotonic()
    with waiter.expected(model, "r") as future:
        await replies.put([answer(model)])
        assert await asyncio.wait_for(future, 5) == answer(model)
    assert time.monotonic() - started_s < 2.5


async def test_an_answer_that_was_there_before_anyone_waited_is_read(replies, model, waiter):
    await replies.put([answer(model)])
    with waiter.expected(model, "r") as future:
        assert await asyncio.wait_for(future, 5) == answer(model)


async def test_a_reply_for_a_caller_that_has_gone_is_dropped(replies, model, waiter):
    with waiter.expected(model, "forgotten") as forgotten:
        pass
    with waiter.expected(model, "gone") as gone, waiter.expected(model, "r") as there:
        gone.cancel()
        for request_id in ("gone", "forgotten", "unknown", "r"):
            await replies.put([answer(model, request_id)], [model])
        assert await asyncio.wait_for(there, 5) == answer(model)
    assert not forgotten.done()


@pytest.mark.parametrize("leaves", ["first", "second"])
async def test_who_stops_waiting_leaves_the_other_waiting(replies, model, waiter, leaves):
    """Two callers under one `Idempotency-Key`: one hangs up, or its deadline passes."""
    with ExitStack() as first, ExitStack() as second:
        futures = {"first": first.enter_context(waiter.expected(model, "r"))}
        futures["second"] = second.enter_context(waiter.expected(model, "r"))
        gone = futures.pop(leaves)
        gone.set_exception(ConnectionResetError("hung up"))
        (first if leaves == "first" else second).close()
        assert isinstance(gone.exception(), ConnectionResetError)
        await replies.put([answer(model)], [model])
        [stays] = futures.values()
        assert await asyncio.wait_for(stays, 5) == answer(model)


async def test_who_waits_for_an_answer_that_another_has_already_gets_it_too(replies, model, waiter):
    with waiter.expected(model, "r") as early:
        await replies.put([answer(model)])
        await asyncio.wait_for(early, 5)
        with waiter.expected(model, "r") as late:
            assert await asyncio.wait_for(late, 5) == answer(model)


async def test_many_wait_at_once(replies, model, waiter):
    ids = [str(number) for number in range(450)]
    with ExitStack() as waits:
        futures = {request_id: waits.enter_context(waiter.expected(model, request_id)) for request_id in ids}
        await replies.put([answer(model, request_id) for request_id in ids])
        async with asyncio.timeout(5):
            assert [(await futures[request_id]).id for request_id in ids] == ids


async def test_a_lost_connection_is_made_again(replies, model, waiter, backbone):
    await subscribed(backbone, model)
    await replies._redis.connection_pool.disconnect(inuse_connections=True)
    with waiter.expected(model, "r") as future:
        await replies.put([answer(model)])
        assert await asyncio.wait_for(future, 5) == answer(model)
    await subscribed(backbone, model)


async def test_redis_going_away_makes_it_unhealthy_and_coming_back_answers(monkeypatch):
    monkeypatch.setattr(reply_waiter, "_READ_INTERVAL_S", 0.05)
    fake = FakeReplies()
    async with ReplyWaiter(fake, "gateway-1") as waiting:
        await eventually(lambda: waiting.healthy)
        fake.down = True
        await eventually(lambda: not waiting.healthy)
        with waiting.expected("m", "r") as future:
            fake.down = False
            await fake.put([answer("m")])
            assert await asyncio.wait_for(future, 5) == answer("m")
        await eventually(lambda: waiting.healthy)
