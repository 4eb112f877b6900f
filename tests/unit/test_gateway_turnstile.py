"""Refusals at the door: what is refused there, what is let in to be looked at, and that connections live on."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter

import pytest

from services.gateway import answers, http_server, turnstile
from services.gateway.admission import Admission
from services.gateway.at_the_door import AtTheDoor
from services.gateway.settings import GatewaySettings
from shared.errors import Overloaded
from support.http_port import served
from support.ports import free_port

WITHIN_S = 30
APART_S = 0.01
"""Between what is sent, so that it arrives one by one."""
REFUSAL = answers.raw(answers.of_error(Overloaded("full", 2.5)))


class Full:
    """A door that is shut for the model `full`."""

    def refusal(self, path):
        return REFUSAL if b"/full/" in path else None

    def turned_away(self, _path):
        pass


@contextlib.asynccontextmanager
async def talking():
    """A server whose application says how long the body was: a function to talk to it, and the bodies it saw."""
    settings = GatewaySettings(gateway_port=free_port(), drain_timeout_s=0)
    seen = []

    async def app(_scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        seen.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def talk(*said, answers=1, pause_s=None):
        """All that comes back to these pieces, each of which arrives by itself, once there are so many answers.

        With a pause each piece is said so long after the answer to the one before.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", settings.gateway_port)
        heard = b""
        async with asyncio.timeout(WITHIN_S):
            for piece in said:
                writer.write(piece)
                await asyncio.sleep(APART_S)
                if pause_s is not None:
                    heard += await hear(reader)
                    await asyncio.sleep(pause_s)
            heard += await hear(reader, answers - whole(heard))
            if not reader.at_eof():
                writer.write_eof()
            heard += await reader.read()
        writer.close()
        return heard

    async with served(app, settings, Full()):
        yield talk, seen


async def hear(reader, answers=1):
    """What comes, up to so many whole answers, or the end."""
    heard = b""
    while whole(heard) < answers and (more := await reader.read(100_000)):
        heard += more
    return heard


def whole(heard):
    """How many answers are there to their end. `100 Continue` is none."""
    count = 0
    while match := re.match(rb"HTTP/1.1 (\d)(?s:.*?)\r\n\r\n", heard):
        length = re.search(rb"content-length: (\d+)", match[0])
        end = match.end() + (int(length[1]) if length else 0)
        if len(heard) < end:
            break
        count += match[1] != b"1"
        heard = heard[end:]
    return count


def post(model, body=b"{}", *, length=None, path="infer", headers=b""):
    length = len(body) if length is None else length
    return b"POST /v2/models/%s/%s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n%s\r\n%s" % (
        model, path.encode(), length, headers, body,
    )  # fmt: skip


def statuses(heard):
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", heard)]


async def test_a_full_model_is_refused_and_the_connection_goes_on():
    async with talking() as (talk, seen):
        heard = await talk(post(b"full"), post(b"full", b""), post(b"free"), post(b"full"), answers=4, pause_s=0)
    assert statuses(heard) == [503, 503, 200, 503]
    assert heard.count(b"retry-after: 3\r\n") == 3
    assert heard.endswith(b'{"error":"full","code":"overloaded"}')
    assert seen == [b"{}"]


async def test_a_body_that_names_a_priority_is_let_in_whole():
    body = b'{"parameters": {"priority": 1}}' + b" " * 5000
    async with talking() as (talk, seen):
        whole = post(b"full", body)
        assert (await talk(whole)).startswith(b"HTTP/1.1 200")
        assert (await talk(whole[:200], whole[200:3000], whole[3000:])).startswith(b"HTTP/1.1 200")
    assert seen == [body, body]


@pytest.mark.parametrize(
    "said",
    [
        post(b"full", b"x" * 70_000),
        post(b"full", path="stats"),
        post(b"full", headers=b"connection: close\r\n"),
        post(b"full").replace(b"HTTP/1.1", b"HTTP/1.0"),
        post(b"full").replace(b"POST", b"GET"),
        post(b"full", headers=b"expect: 100-continue\r\n"),
        b"POST /v2/models/full/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ],
    ids=["long", "other path", "close", "1.0", "GET", "expect", "chunked"],
)
async def test_what_is_not_plain_goes_the_usual_way(said):
    async with talking() as (talk, seen):
        assert b" 200 " in await talk(said)
    assert len(seen) == 1


async def test_pipelined_requests_are_answered_in_order():
    async with talking() as (talk, seen):
        heard = await talk(post(b"free") + post(b"full") + post(b"full") + post(b"free"), answers=4)
    assert statuses(heard) == [200, 200, 200, 200]  # behind another they go the usual way
    assert len(seen) == 4


async def test_who_asks_again_and_again_is_answered_a_little_later_and_in_order():
    async with talking() as (talk, seen):
        heard = await talk(post(b"full") * 8 + post(b"free"), answers=9)  # the next request sends what is due
        assert statuses(heard) == [503] * 8 + [200]
        assert statuses(await talk(*[post(b"full")] * 8, answers=8)) == [503] * 8
    assert seen == [b"{}"]


async def test_only_who_asks_at_once_is_answered_later(monkeypatch):
    monkeypatch.setattr(turnstile, "_STEP_S", 30.0)
    monkeypatch.setattr(turnstile, "_LONGEST_S", 30.0)
    async with talking() as (talk, _):
        patient = await talk(*[post(b"full")] * 4, answers=4, pause_s=turnstile._PATIENT_S)
        assert statuses(patient) == [503] * 4
        monkeypatch.setattr(turnstile, "_PATIENT_S", 30.0)
        assert statuses(await talk(*[post(b"full")] * 4, answers=3)) == [503] * 3  # the fourth is still due


async def test_a_held_body_may_be_as_long_as_it_says_and_come_in_pieces():
    body = b"x" * 60_000
    async with talking() as (talk, seen):
        whole = post(b"full", body, headers=b"x-more: " + b"y" * 10_000 + b"\r\n")
        assert (await talk(whole[:5_000], whole[5_000:40_000], whole[40_000:])).startswith(b"HTTP/1.1 503")
    assert not seen


async def test_a_held_body_that_does_not_come_closes_the_connection(monkeypatch):
    monkeypatch.setattr(http_server, "_HEAD_TIMEOUT_S", 0.2)
    async with talking() as (talk, seen):
        assert await talk(post(b"full", b"{", length=100)) == b""
    assert not seen


def test_only_models_that_were_asked_for_are_refused_at_the_door():
    gate, answered = Admission(GatewaySettings(max_in_flight_per_model=1)), Counter()
    door, path = AtTheDoor(gate, answered), b"/v2/models/m/infer"
    assert door.refusal(path) is None
    with gate.request("m"):
        refused = door.refusal(path)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in refused
        assert door.refusal(b"/v2/models/m/versions/3/infer") is refused
        for other in (
            b"/v2/models/n/infer",
            b"/infer",
            b"/v2/models/",
            b"/v2/models/%6d/infer",
            b"/v2/models/\xff/infer",
        ):
            assert door.refusal(other) is None
    assert door.refusal(path) is None
    assert not answered
    door.turned_away(path)
    assert answered == {503: 1}
