"""The pure parts of asynchronous requests: states, positions, events, keys and preferences."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway import idempotency, preferences
from services.gateway.event_stream import EventStream, event, event_id
from services.gateway.infer import Call
from services.gateway.request_state import RequestState, position_of, state_of
from services.gateway.request_watch import Following, RequestWatch
from shared.errors import IdConflict, InvalidInput, Overloaded, Stopping
from shared.events import MachineClass
from shared.heartbeat_events import Heartbeat
from shared.heartbeats import Heartbeats
from shared.replies import Claim
from shared.reply_waiter import ReplyWaiter
from shared.results import Result
from support.fake_replies import FakeReplies
from support.waiting import eventually

CLAIM = Claim("t.requests.m", 2, 10, "acme", "ab" * 32)
ENDED = Result(id="r", status="succeeded", model_name="m", model_version=1)
QUEUED = RequestState("queued", 3)


def beat(instance="w", **positions):
    told = {where.replace("__", "/").replace("_", "."): offset for where, offset in positions.items()}
    return Heartbeat(
        instance=instance,
        incarnation="1",
        service="worker",
        machine=MachineClass(isa="test"),
        registry_offset=0,
        positions=told,
        interval_s=2.0,
    )


# ------------------------------------------------------------------ states


def test_an_answer_is_the_state_whatever_runs():
    state = state_of(CLAIM, {(CLAIM.where, 10)}, ENDED, [])
    assert (state.state, state.queue_position, state.ended) == ("succeeded", None, True)


def test_running_is_by_record_and_has_no_position():
    assert state_of(CLAIM, {(CLAIM.where, 10)}, None, [beat(t_requests_m__2=4)]) == RequestState("running")
    for other in (("t.requests.m/1", 10), (CLAIM.where, 9), ("t.requests.m.high/2", 10)):
        assert state_of(CLAIM, {other}, None, []).state == "queued"


@pytest.mark.parametrize(
    ("alive", "position"),
    [
        ([], None),
        ([beat(t_requests_m__1=4)], None),
        ([beat(t_requests_m__2=10)], 0),
        ([beat(t_requests_m__2=4)], 6),
        ([beat(t_requests_m__2=12)], 0),  # answered since Redis was read
        ([beat(t_requests_m__2=4), beat("old", t_requests_m__2=1), beat("other", t_requests_m__0=9)], 6),
    ],
)
def test_a_position_counts_what_is_before_it(alive, position):
    assert position_of(CLAIM, alive) == position


# ------------------------------------------------------------------ preferences


@pytest.mark.parametrize(
    ("prefer", "wait_s"),
    [
        ("", None),
        ("return=minimal", None),
        ("wait=10", None),
        ("respond-async", 0),
        ("Respond-Async, WAIT=10", 10),
        ('wait="3", respond-async;x=y', 3),
        ("respond-async, wait=1, wait=9", 1),
        ("respond-async, wait=soon", 0),
        ("respond-async, wait=-1", 0),
        ("respond-async, wait=99999999999", 0),
        ("xrespond-async", None),
    ],
)
def test_preferences(prefer, wait_s):
    assert preferences.respond_async(prefer) == wait_s


@given(st.text(max_size=100))
def test_preferences_of_anyone(prefer):
    wait_s = preferences.respond_async(prefer)
    assert wait_s is None or 0 <= wait_s < 10**6


# ------------------------------------------------------------------ keys


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255))
def test_every_printable_string_is_a_key_in_quotes(key):
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    assert idempotency.key_of(f'"{escaped}"') == key


@given(st.from_regex(r"[!#-+\--~]{1,255}", fullmatch=True))
def test_a_key_without_quotes_is_the_same_key(key):
    if "\\" not in key:
        assert idempotency.key_of(key) == idempotency.key_of(f' "{key}" ') == key


@given(st.text(max_size=300))
def test_keys_of_anyone_are_bounded_or_refused(value):
    try:
        key = idempotency.key_of(value)
    except InvalidInput:
        return
    assert 1 <= len(key) <= 255
    assert key.isascii()
    assert key.isprintable()


def test_an_id_is_of_tenant_model_and_key():
    ids = {
        idempotency.request_id(*who) for who in [(None, "m", "k"), ("None", "m", "k"), ("", "m", "k"), (None, "mk", "")]
    }
    assert len(ids) == 4
    assert idempotency.request_id("acme", "m", "k") == idempotency.request_id("acme", "m", "k")
    assert all(len(found) == 64 and found.isalnum() for found in ids)


def call(version=None):
    return Call("id", "m", version, "acme", None, keyed=True)


async def test_who_comes_first_appends_and_others_join():
    replies = FakeReplies()
    assert await idempotency.join(replies, call(), b"value", 1) is None
    assert await idempotency.join(replies, call(), b"value", 1) is None  # not in the log as far as anyone knows
    owner = Claim("t", 0, 1, "acme", "cd42404d52ad55ccfa9aca4adc828aa5800ad9d385a0671fbcbf724118320619")
    await replies.claim("m", "id", owner)
    assert await idempotency.join(replies, call(), b"value", 1) == (owner, None)
    await replies.put([Result(id="id", status="failed", model_name="m")])
    joined = await idempotency.join(replies, call(), b"value", 1)
    assert joined is not None
    assert joined[1].status == "failed"


async def test_another_value_or_version_is_a_conflict_until_all_is_forgotten():
    replies = FakeReplies(ttl_s=100)
    await idempotency.join(replies, call(), b"value", 20)
    for other in ((call(), b"other"), (call(1), b"value")):
        with pytest.raises(IdConflict):
            await idempotency.join(replies, *other, 20)
    replies.pass_time(119)
    with pytest.raises(IdConflict):
        await idempotency.join(replies, call(), b"other", 20)
    replies.pass_time(2)
    assert await idempotency.join(replies, call(), b"other", 20) is None


async def test_an_id_that_an_upstream_producer_took_is_a_conflict():
    replies = FakeReplies()
    await replies.claim("m", "id", CLAIM)
    with pytest.raises(IdConflict):
        await idempotency.join(replies, call(), b"value", 1)


# ------------------------------------------------------------------ following


@pytest.fixture
async def watching():
    """A watch with places for two streams, over replies in memory: `(watch, replies, heartbeats)`."""
    replies, heartbeats = FakeReplies(), Heartbeats()
    async with ReplyWaiter(replies, "g") as waiter, asyncio.TaskGroup() as tasks:
        watch = RequestWatch(replies, waiter, heartbeats, 2)
        running = tasks.create_task(watch.run())
        yield watch, replies, heartbeats
        running.cancel()


async def test_one_reader_tells_all_who_follow(watching):
    watch, replies, heartbeats = watching
    with watch.following("m", "r", CLAIM, QUEUED) as one, watch.following("m", "r", CLAIM, QUEUED) as two:
        heartbeats.heard(beat(t_requests_m__2=8), 0)
        await eventually(lambda: one.state.queue_position == two.state.queue_position == 2)
        await replies.screen("m", {"r": CLAIM}, "w/1#1")
        await eventually(lambda: one.state.state == two.state.state == "running")
        await replies.put([ENDED])
        await eventually(lambda: one.state.ended and two.state.ended)


async def test_an_outage_of_redis_is_outlived(watching):
    watch, replies, _ = watching
    asked = asyncio.Event()

    async def running(model):
        asked.set()
        return await FakeReplies.running(replies, model)

    with watch.following("m", "r", CLAIM, QUEUED) as following:
        replies.down, replies.running = True, running
        await asyncio.wait_for(asked.wait(), 30)
        assert following.state == QUEUED
        replies.down = False
        await replies.put([ENDED])
        await eventually(lambda: following.state.ended)


async def test_places_are_bounded_and_none_are_left_when_it_stops(watching):
    watch, _, _ = watching
    with watch.following("m", "a", CLAIM, QUEUED) as one, watch.following("m", "b", CLAIM, QUEUED):
        with pytest.raises(Overloaded), watch.following("m", "c", CLAIM, QUEUED):
            pass
        watch.stop()
        assert one.over
        assert isinstance(one.error, Stopping)
    with pytest.raises(Stopping), watch.following("m", "a", CLAIM, QUEUED):
        pass


def test_the_first_answer_is_the_last_state():
    following = Following(CLAIM, QUEUED)
    following.tell(RequestState("succeeded", result=ENDED))
    following.tell(RequestState("running"))
    assert following.state.state == "succeeded"


# ------------------------------------------------------------------ events


def test_an_event_is_what_the_standard_says():
    assert event("state", b"{}", "queued-3") == b"event: state\nid: queued-3\ndata: {}\n\n"
    assert event("stopping", b"{}") == b"event: stopping\ndata: {}\n\n"
    assert [event_id(s) for s in (QUEUED, RequestState("running"), RequestState("failed", result=ENDED))] == [
        "queued-3",
        "running",
        "failed",
    ]


async def stream(following, *, takes=None, lifetime_s=3600.0, leaves=None):
    """What a client gets. Each piece has been sent when `takes(piece)` returns."""
    watch_exit, sent = asyncio.Event(), []

    class Watched:
        def __enter__(self):
            return following

        def __exit__(self, *_):
            watch_exit.set()

    async def receive():
        await (leaves or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        if takes is not None and message.get("body"):
            await takes(message["body"])

    async with asyncio.timeout(30):
        await EventStream(Watched(), lambda s: {"state": s.state}, lifetime_s, {})({"type": "http"}, receive, send)
    assert watch_exit.is_set()
    assert not sent[-1].get("more_body", False)
    return b"".join(message.get("body", b"") for message in sent).decode()


async def test_a_slow_reader_gets_the_latest_and_not_what_was_before():
    following, begun, goes_on = Following(CLAIM, QUEUED), asyncio.Event(), asyncio.Event()

    async def takes(_):
        begun.set()
        await goes_on.wait()

    reading = asyncio.create_task(stream(following, takes=takes))
    await begun.wait()
    for position in (2, 1, 0):
        following.tell(RequestState("queued", position))
        await asyncio.sleep(0)
    following.tell(RequestState("succeeded", result=ENDED))
    goes_on.set()
    assert [line for line in (await reading).splitlines() if line.startswith("id")] == ["id: queued-3", "id: succeeded"]


async def test_a_quiet_stream_is_kept_alive(monkeypatch):
    monkeypatch.setattr("services.gateway.event_stream._KEEP_ALIVE_S", 0.02)
    leaves, pieces = asyncio.Event(), []

    async def takes(piece):
        pieces.append(piece)
        if len(pieces) == 3:
            leaves.set()

    await stream(Following(CLAIM, QUEUED), takes=takes, leaves=leaves)
    state = b'retry: 1000\nevent: state\nid: queued-3\ndata: {"state":"queued"}\n\n'
    assert pieces[:3] == [state, b": nothing new\n\n", b": nothing new\n\n"]


async def test_a_stream_that_has_had_its_time_ends_without_an_outcome():
    assert "outcome" not in await stream(Following(CLAIM, QUEUED), lifetime_s=0.1)


async def test_a_client_that_leaves_ends_its_stream():
    leaves = asyncio.Event()

    async def takes(_):
        leaves.set()

    assert (await stream(Following(CLAIM, QUEUED), takes=takes, leaves=leaves)).count("event:") == 1
