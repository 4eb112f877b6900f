"""One suite for the Redis contract and for the fake that stands in for it."""

from __future__ import annotations

import asyncio
import inspect

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from shared import replies as module
from shared.codec import pack, unpack
from shared.errors import RepliesUnavailable
from shared.keeping import Keeping
from shared.replies import ANNOUNCED_PAYLOAD_BYTES, Claim, Ran, Replies, Reserved, Screened
from shared.results import Result
from shared.settings import PlatformSettings
from shared.tensors import Tensor
from support.fake_replies import FakeReplies
from support.ports import free_port

CLAIM = Claim(topic="t.requests.m", partition=2, offset=7, tenant="acme", input_sha256="ab" * 32)
TTL_S = 1000


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.stack)])
async def harness(request):
    if request.param == "fake":
        yield Harness(FakeReplies(ttl_s=TTL_S), "m", None)
        return
    backbone = request.getfixturevalue("backbone")
    redis = Redis.from_url(backbone.redis_url)
    yield Harness(Replies(redis, Keeping(TTL_S, TTL_S)), backbone.model(), redis)
    await redis.aclose()


class Harness:
    def __init__(self, replies, model, redis):
        self.replies = replies
        self.model = model
        self._redis = redis

    async def pass_time(self, seconds_s):
        """Nobody waits for it: of the keys in Redis, each has so much less of the time left that it was given."""
        if self._redis is None:
            self.replies.pass_time(seconds_s)
            return
        for key in {key async for key in self._redis.scan_iter(f"aiaas:*:{self.model}*")}:  # which may tell one twice
            if b":quota:" in key:
                await self._redis.hset(key, "at", float(await self._redis.hget(key, "at")) - seconds_s)
            if (left_ms := await self._redis.pttl(key)) > 0:
                await self._redis.pexpire(key, left_ms - round(seconds_s * 1000))  # from 0 down it is deleted


@pytest.fixture
def replies(harness):
    return harness.replies


@pytest.fixture
def model(harness):
    return harness.model


def answer(model, request_id="r", size=8, **fields):
    tensor = Tensor("y", "UINT8", (size,), bytes(size))
    return Result(id=request_id, status="succeeded", model_name=model, model_version=1, outputs=(tensor,), **fields)


def public_methods(of):
    return {
        name: [parameter.name for parameter in inspect.signature(method).parameters.values()]
        for name, method in inspect.getmembers(of, callable)
        if not name.startswith("_")
    }


def test_the_fake_has_the_methods_of_the_real_one():
    fake = public_methods(FakeReplies)
    assert {name: fake.get(name) for name in public_methods(Replies)} == public_methods(Replies)


async def test_redis_answers(replies):
    await replies.ping()


async def test_a_result_comes_back_whole(replies, model):
    full = replace(
        answer(model, receipt=pack({"request_id": "r", "batch": {"size": 3}, "runtime": None})),
        outputs=(Tensor("y", "BYTES", (1,), b"\x01\x00\x00\x00\xff"), Tensor("z", "FP32", (0, 3), b"")),
    )
    failed = Result(id="f", status="failed", model_name=model, error={"code": "run_timeout", "message": "too long"})
    assert await replies.put([full, failed]) == [full, failed]
    assert await replies.get([(model, "f"), (model, "nobody"), (model, "r")]) == [failed, None, full]


def test_fields_of_a_newer_writer_are_left_out():
    stored = {**unpack(answer("m").encode()), "invented_later": 1}
    assert Result.decode(pack(stored)) == answer("m")


async def test_memory_views_are_stored_as_bytes(replies, model):
    viewed = replace(answer(model), outputs=(Tensor("y", "UINT8", (2,), memoryview(b"ab")),))
    await replies.put([viewed])
    assert await replies.get([(model, "r")]) == [replace(answer(model), outputs=(Tensor("y", "UINT8", (2,), b"ab"),))]


async def test_the_first_answer_counts_and_everyone_learns_it(replies, model):
    first, second, other = answer(model), answer(model, size=3), answer(model, "other")
    assert await replies.put([first]) == [first]
    assert await replies.put([second, other]) == [first, other]
    assert await replies.get([(model, "r")]) == [first]


async def test_the_same_id_twice_in_one_put_has_one_answer(replies, model):
    first, second = answer(model), answer(model, size=3)
    assert await replies.put([first, second]) == [first, first]


async def test_models_do_not_share_ids(replies, model):
    await replies.put([answer(model)])
    assert await replies.get([(f"{model}-b", "r")]) == [None]
    other = answer(f"{model}-b", size=1)
    assert await replies.put([other]) == [other]


async def test_nothing_in_nothing_out(replies, model):
    assert await replies.put([]) == []
    assert await replies.get([]) == []
    assert await replies.screen(model, {}) == {}
    assert await replies.put([], [], Ran(model, "w/1#1", ())) == []
    assert await replies.running(model) == set()
    await replies.forget_deaths(model, [])
    assert await replies.count_deaths(model, "w/1", {}) == {}


async def test_of_a_cancel_and_an_answer_the_first_wins(replies, model):
    cancelled = await replies.cancel(model, "r")
    assert (cancelled.status, cancelled.error["code"], cancelled.receipt) == ("cancelled", "cancelled", None)
    assert await replies.put([answer(model)]) == [cancelled]
    answered = answer(model, "s")
    await replies.put([answered])
    assert await replies.cancel(model, "s") == answered


async def test_a_race_of_many_has_one_winner_that_all_agree_on(replies, model):
    offers = [answer(model, size=size) for size in range(1, 20)]
    told = await asyncio.gather(replies.cancel(model, "r"), *(replies.put([offer]) for offer in offers))
    winners = [told[0], *(winner for [winner] in told[1:])]
    [stored] = await replies.get([(model, "r")])
    assert winners == [stored] * 20


async def test_an_answer_is_forgotten_after_its_time_and_the_id_is_free_again(harness):
    replies, model = harness.replies, harness.model
    await replies.put([answer(model)])
    await replies.claim(model, "r", CLAIM)
    await harness.pass_time(TTL_S)
    assert await replies.get([(model, "r")]) == [None]
    assert await replies.claimed(model, "r") is None
    later = answer(model, size=3)
    assert await replies.put([later]) == [later]


async def test_the_first_claim_of_an_id_counts(replies, model):
    second = replace(CLAIM, offset=8, tenant=None)
    assert await replies.claimed(model, "r") is None
    assert await replies.claim(model, "r", CLAIM) == CLAIM
    assert await replies.claim(model, "r", second) == CLAIM
    assert await replies.claimed(model, "r") == CLAIM
    assert CLAIM.same_record(replace(CLAIM, tenant="x"))
    assert not CLAIM.same_record(second)
    assert CLAIM.same_request(replace(CLAIM, offset=8))
    assert not CLAIM.same_request(second)


async def test_screening_claims_and_tells_what_is_answered(replies, model):
    theirs, mine = replace(CLAIM, offset=1), replace(CLAIM, offset=2)
    done = answer(model, "done")
    await replies.claim(model, "taken", theirs)
    await replies.put([done])
    screened = await replies.screen(model, {"new": mine, "taken": mine, "done": mine})
    assert screened == {
        "new": Screened(mine, None),
        "taken": Screened(theirs, None),
        "done": Screened(mine, done),
    }
    assert list(screened) == ["new", "taken", "done"]
    assert await replies.claimed(model, "new") == mine
    assert await replies.screen(model, {"new": mine}) == {"new": Screened(mine, None)}


async def test_answers_are_announced_to_the_gateway_that_waits(replies, model):
    small, large = answer(model, "small"), answer(model, "large", size=ANNOUNCED_PAYLOAD_BYTES)
    gateway, other = f"{model}-gateway-1", f"{model}-gateway-2"
    async with replies.announcements(gateway) as heard, replies.announcements(other) as elsewhere:
        results = [small, large, answer(model, "third"), answer(model, "fourth"), answer(model, "fifth")]
        await replies.put(results, [gateway, gateway, other, "nobody", None])
        await replies.put([answer(model, "sixth")], [gateway])
        async with asyncio.timeout(30):
            assert await anext(heard) == [(model, "small", small), (model, "large", None)]
            assert await anext(heard) == [(model, "sixth", answer(model, "sixth"))]
            assert await anext(elsewhere) == [(model, "third", results[2])]


async def test_what_is_announced_is_the_answer_that_counts(replies, model):
    first, second, other = answer(model), answer(model, size=3), answer(model, "other")
    await replies.put([first])
    async with replies.announcements(model) as heard:
        assert await replies.put([second, other], [model, model]) == [first, other]
        async with asyncio.timeout(30):
            assert await anext(heard) == [(model, "r", first), (model, "other", other)]


async def test_an_answer_that_is_put_again_is_announced_again(replies, model):
    async with replies.announcements(model) as heard:
        for _ in range(2):
            assert await replies.put([answer(model)], [model]) == [answer(model)]
            async with asyncio.timeout(30):
                assert await anext(heard) == [(model, "r", answer(model))]


async def test_an_announcement_that_nobody_hears_is_lost(replies, model):
    await replies.put([answer(model, "early")], [model])
    async with replies.announcements(model) as heard:
        await replies.put([answer(model, "later")], [model])
        async with asyncio.timeout(30):
            assert (await anext(heard))[0][1] == "later"


async def mark(replies, model, run, offsets):
    """Say that records are in a run, as `{partition: offsets}` of one topic."""
    claims = [
        replace(CLAIM, topic="t", partition=partition, offset=offset)
        for partition, members in offsets.items()
        for offset in members
    ]
    ids = [f"{claim.partition}-{claim.offset}" for claim in claims]
    await replies.screen(model, dict(zip(ids, claims, strict=True)), run)


async def test_records_are_running_until_their_answers_are_put(replies, model):
    await mark(replies, model, "w/1#1", {0: [5, 6], 1: [9]})
    await mark(replies, model, "w/1#2", {0: [7]})
    assert await replies.running(model) == {("t/0", 5), ("t/0", 6), ("t/0", 7), ("t/1", 9)}
    await replies.put([answer(model)], [None], Ran(model, "w/1#1", ("t/0", "t/1")))
    assert await replies.running(model) == {("t/0", 7)}


async def test_a_run_that_ended_counts_no_death(replies, model):
    await mark(replies, model, "w/1#1", {0: [5, 6], 1: [9]})
    await replies.put([], [], Ran(model, "w/1#1", ("t/0", "t/1")))
    assert await replies.count_deaths(model, "w/2", {"t/0": 0, "t/1": 0}) == {}


async def test_a_run_that_never_ended_counts_one_death_for_each_record_in_it(replies, model):
    await mark(replies, model, "w/1#1", {0: [5, 6], 1: [9]})
    in_first = {("t/0", 5): 1, ("t/0", 6): 1}
    assert await replies.count_deaths(model, "w/2", {"t/0": 0}) == in_first
    assert await replies.count_deaths(model, "w/2", {"t/0": 0, "t/1": 0}) == in_first | {("t/1", 9): 1}


async def test_a_mark_is_counted_once_however_often_it_is_looked_at(replies, model):
    await mark(replies, model, "w/1#1", {0: [5]})
    for _ in range(3):
        assert await replies.count_deaths(model, "w/2", {"t/0": 0}) == {("t/0", 5): 1}


async def test_deaths_add_up_over_owners(replies, model):
    for life in range(1, 4):
        await mark(replies, model, f"w/{life}#1", {0: [5]})
        assert await replies.count_deaths(model, f"w/{life + 1}", {"t/0": 5}) == {("t/0", 5): life}


async def test_what_has_its_outcome_is_not_counted(replies, model):
    await mark(replies, model, "w/1#1", {0: [5, 6, 7]})
    assert await replies.count_deaths(model, "w/2", {"t/0": 6}) == {("t/0", 6): 1, ("t/0", 7): 1}


async def test_an_owner_does_not_count_its_own_runs(replies, model):
    await mark(replies, model, "w/1#1", {0: [5]})
    assert await replies.count_deaths(model, "w/1", {"t/0": 0}) == {}
    await mark(replies, model, "w/1#2", {0: [6]})
    assert await replies.count_deaths(model, "w/12", {"t/0": 0}) == {("t/0", 5): 1, ("t/0", 6): 1}


async def test_forgotten_deaths_are_not_counted_again(replies, model):
    await mark(replies, model, "w/1#1", {0: [5, 6]})
    await replies.count_deaths(model, "w/2", {"t/0": 0})
    await replies.forget_deaths(model, [("t/0", 5), ("t/3", 99)])
    assert await replies.count_deaths(model, "w/2", {"t/0": 0}) == {("t/0", 6): 1}


# ------------------------------------------------------------------ tenants' quotas

SLOW = {"rate": 0.001, "burst": 5}
"""A bucket that hardly fills while a test looks at it."""


async def test_a_bucket_begins_full_and_gives_what_it_has(replies, model):
    assert await replies.lease(model, **SLOW, wanted=3, back=0) == (3, 0)
    leased, after_s = await replies.lease(model, **SLOW, wanted=3, back=0)
    assert leased == 2
    assert 900 < after_s <= 1000


async def test_what_a_lease_did_not_use_can_be_had_by_the_next(replies, model):
    await replies.lease(model, **SLOW, wanted=5, back=0)
    assert (await replies.lease(model, **SLOW, wanted=1, back=0))[0] == 0
    assert (await replies.lease(model, **SLOW, wanted=2, back=3))[0] == 2
    assert (await replies.lease(model, **SLOW, wanted=5, back=0))[0] == 1


async def test_a_bucket_holds_its_burst_and_no_more(replies, model):
    assert (await replies.lease(model, **SLOW, wanted=9, back=100))[0] == 5


async def test_a_bucket_fills_with_time(harness):
    full = {"rate": 0.01, "burst": 4}
    assert (await harness.replies.lease(harness.model, **full, wanted=4, back=0))[0] == 4
    await harness.pass_time(350)
    assert (await harness.replies.lease(harness.model, **full, wanted=4, back=0))[0] == 3


async def test_tenants_have_buckets_of_their_own(replies, model):
    await replies.lease(model, **SLOW, wanted=5, back=0)
    assert (await replies.lease(f"{model}-other", **SLOW, wanted=5, back=0))[0] == 5


COMMANDS = {
    "ping": lambda r: r.ping(),
    "put": lambda r: r.put([answer("m")]),
    "get": lambda r: r.get([("m", "r")]),
    "claimed": lambda r: r.claimed("m", "r"),
    "claim": lambda r: r.claim("m", "r", CLAIM),
    "cancel": lambda r: r.cancel("m", "r"),
    "screen": lambda r: r.screen("m", {"r": CLAIM}),
    "announcements": lambda r: r.announcements("g").__aenter__(),
    "running": lambda r: r.running("m"),
    "count_deaths": lambda r: r.count_deaths("m", "w/1", {"t/0": 0}),
    "forget_deaths": lambda r: r.forget_deaths("m", [("t/0", 1)]),
    "remember": lambda r: r.remember("m", "r"),
    "reserve": lambda r: r.reserve("m", "r", "digest", 1),
    "lease": lambda r: r.lease("acme", rate=1, burst=1, wanted=1, back=0),
}


def test_every_command_is_tried_below():
    assert set(COMMANDS) == set(public_methods(Replies))


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("kind", ["fake", "real"])
async def test_a_redis_that_is_down_is_an_error_that_can_be_retried(kind, command):
    if kind == "fake":
        fake = FakeReplies()
        fake.down = True
        with pytest.raises(RepliesUnavailable):
            await command(fake)
        return
    settings = PlatformSettings(redis_url=f"redis://127.0.0.1:{free_port()}/0")
    async with module.connect(settings) as replies:
        with pytest.raises(RepliesUnavailable, match="Redis did not answer") as caught:
            await command(replies)
    assert caught.value.retriable


@pytest.mark.alone
async def test_a_redis_that_hangs_is_down_within_its_timeout():
    async def say_nothing(reader, writer):
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        settings = PlatformSettings(redis_url=f"redis://127.0.0.1:{port}/0", redis_timeout_s=0.2)
        async with asyncio.timeout(2), module.connect(settings) as replies:
            with pytest.raises(RepliesUnavailable):
                await replies.ping()


async def test_an_id_is_reserved_for_the_first_digest_and_tells_what_became(harness):
    replies, model = harness.replies, harness.model
    longer_s = 500
    assert await replies.reserve(model, "r", "first", longer_s) == Reserved("first", None, None)
    assert await replies.reserve(model, "r", "second", longer_s) == Reserved("first", None, None)
    await replies.claim(model, "r", CLAIM)
    assert await replies.reserve(model, "r", "first", longer_s) == Reserved("first", CLAIM, None)
    await replies.put([answer(model)])
    assert await replies.reserve(model, "r", "first", longer_s) == Reserved("first", CLAIM, answer(model))
    await harness.pass_time(TTL_S)  # claim and answer are forgotten, what was asked not yet
    assert await replies.reserve(model, "r", "second", longer_s) == Reserved("first", None, None)
    await harness.pass_time(longer_s)
    assert await replies.reserve(model, "r", "second", longer_s) == Reserved("second", None, None)


async def test_a_claim_that_is_asked_for_is_remembered(harness):
    replies, model = harness.replies, harness.model
    await replies.remember(model, "r")
    assert await replies.claimed(model, "r") is None
    await replies.claim(model, "r", CLAIM)
    await harness.pass_time(TTL_S * 0.7)
    await replies.remember(model, "r")
    await harness.pass_time(TTL_S * 0.7)
    assert await replies.claimed(model, "r") == CLAIM


@pytest.mark.stack
async def test_the_keys_are_the_documented_ones(backbone):
    """Upstream systems read results from Redis themselves."""
    model, redis = backbone.model(), Redis.from_url(backbone.redis_url)
    async with module.connect(backbone.settings(result_ttl_s=60)) as replies:
        await replies.put([answer(model)])
        await replies.claim(model, "r", CLAIM)
        await mark(replies, model, "w/1#1", {0: [5]})
        assert Result.decode(await redis.get(f"aiaas:result:{model}:r")) == answer(model)
        assert 50 < await redis.ttl(f"aiaas:result:{model}:r") <= 60
        assert 50 < await redis.ttl(f"aiaas:claim:{model}:r") <= 60
        assert await redis.hkeys(f"aiaas:running:{model}") == [b"t/0:w/1#1"]
        await replies.count_deaths(model, "w/2", {"t/0": 0})
        assert await redis.hgetall(f"aiaas:deaths:{model}") == {b"t/0:5": b"1"}
        assert not await redis.exists(f"aiaas:running:{model}")
    await redis.aclose()


@pytest.mark.stack
async def test_garbage_on_a_channel_is_skipped(backbone):
    model, redis = backbone.model(), Redis.from_url(backbone.redis_url)
    async with module.connect(backbone.settings()) as replies, replies.announcements(model) as heard:
        for garbage in (b"\xc1", b"\x01", b"\x91\x01", b"\x91\x93\xa1m\xa1r\xc4\x01\x80"):
            await redis.publish(f"aiaas:replies:{model}", garbage)
        await replies.put([answer(model)], [model])
        async with asyncio.timeout(30):
            messages = [await anext(heard) for _ in range(5)]
    assert messages == [[], [], [], [], [(model, "r", answer(model))]]
    await redis.aclose()


@pytest.mark.stack
async def test_what_doctor_wants_to_know(backbone):
    facts = await module.server_facts(backbone.settings())
    assert {"redis_version", "used_memory", "appendonly", "appendfsync", "maxmemory", "maxmemory-policy"} <= set(facts)
