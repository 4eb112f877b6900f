"""Bodies, the outermost layer and slow clients: ASGI messages made by hand, sockets where uvicorn matters."""

from __future__ import annotations

import asyncio

import pytest

from services.gateway import bodies, http_server
from services.gateway.bodies import ClientGone
from services.gateway.edge import Edge
from services.gateway.gateway import Gateway
from services.gateway.one_write import OneWrite
from services.gateway.settings import GatewaySettings
from shared.errors import Stalled, TooLarge
from support.http_port import hello, served
from support.ports import free_port


def receiving(*messages):
    """A `receive` that gives these messages, then nothing for ever."""
    waiting = list(messages)

    async def receive():
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    return receive


def part(body, *, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


GONE = {"type": "http.disconnect"}


async def read(*messages, headers=None, limit_bytes=10, **options):
    return await bodies.read(
        receiving(*messages), headers or {}, limit_bytes=limit_bytes, stall_timeout_s=0.05, **options
    )


async def test_a_body_is_its_pieces():
    assert await read(part(b"ab"), part(b""), part(b"cd", more=False)) == b"abcd"
    assert await read(part(b"", more=False)) == b""


async def test_a_body_is_capped_before_and_while_it_comes():
    with pytest.raises(TooLarge):
        await read(headers={"content-length": "11"})
    taken = []
    with pytest.raises(TooLarge):
        await read(part(b"x" * 6), part(b"x" * 6), take=taken.append)
    assert taken == [6]


async def test_a_body_that_does_not_come():
    with pytest.raises(Stalled):
        await read(part(b"x"))
    with pytest.raises(ClientGone):
        await read(part(b"x"), GONE)


# ------------------------------------------------------------------ the edge


def scope(**headers):
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": "/", "headers": raw}


async def answer_413(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 413, "headers": []})
    await send({"type": "http.response.body", "body": b"no"})


async def exchange(app, scope, *messages, settings=None):
    """What the client got, and the gateway behind it."""
    gateway, sent = Gateway(settings or GatewaySettings()), []

    async def send(message):
        sent.append(message)

    await Edge(app, gateway)(scope, receiving(*messages), send)
    assert gateway.in_flight == 0
    return sent, gateway


async def test_answers_are_counted():
    _, gateway = await exchange(answer_413, scope(), part(b"", more=False))
    assert gateway.answered == {413: 1}


async def answer_503(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 503, "headers": []})
    await send({"type": "http.response.body", "body": b"no"})


async def test_who_only_looks_is_not_refused():
    for method, unready in {"GET": 1, "POST": 0}.items():
        _, gateway = await exchange(answer_503, {**scope(), "method": method}, part(b"", more=False))
        assert (gateway.answered, gateway.unready) == ({503: 1}, unready)


async def test_a_large_body_that_was_not_read_is_drained_before_the_end():
    parts = [part(b"x"), part(b"x"), part(b"x", more=False)]
    sent, _ = await exchange(answer_413, scope(transfer_encoding="chunked"), *parts)
    start, body, end = sent
    assert (b"connection", b"close") in start["headers"]
    assert (body["body"], body["more_body"]) == (b"no", True)
    assert (end["body"], end.get("more_body", False)) == (b"", False)


async def test_a_client_that_leaves_ends_the_draining():
    sent, _ = await exchange(answer_413, scope(content_length="9999999"), part(b"x"), GONE)
    assert len(sent) == 3


async def test_small_bodies_keep_the_connection():
    sent, _ = await exchange(answer_413, scope(content_length="5"))
    assert sent[0]["headers"] == []
    assert len(sent) == 2


async def test_a_client_that_takes_nothing_is_let_go():
    async def stuck(_message):
        await asyncio.Event().wait()

    gateway = Gateway(GatewaySettings(stall_timeout_s=0.05))
    await Edge(answer_413, gateway)(scope(), receiving(), stuck)
    assert gateway.in_flight == 0


# ------------------------------------------------------------------ one write


class Transport:
    """Notes what is written; after `abort` it can't be written to any more."""

    def __init__(self):
        self.written = []
        self._closing = False

    def write(self, data):
        assert not self._closing
        self.written.append(data)

    def is_closing(self):
        return self._closing

    def abort(self):
        self._closing = True


async def test_what_one_turn_writes_goes_together_and_nothing_after_the_end():
    transport = Transport()
    writer = OneWrite(transport, asyncio.get_running_loop())
    writer.write(b"a")
    writer.write(b"b")
    assert not transport.written
    await asyncio.sleep(0)
    assert transport.written == [b"ab"]
    writer.write(b"c")
    writer.write_whole(b"d")
    assert transport.written == [b"ab", b"c", b"d"]
    writer.write(b"lost")
    writer.abort()
    await asyncio.sleep(0)
    writer.flush()
    assert transport.written == [b"ab", b"c", b"d"]


# ------------------------------------------------------------------ uvicorn


async def test_a_request_head_that_does_not_come_closes_the_connection(monkeypatch):
    monkeypatch.setattr(http_server, "_HEAD_TIMEOUT_S", 0.2)
    settings = GatewaySettings(gateway_port=free_port(), drain_timeout_s=0)
    async with served(hello, settings):
        for begun in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\nx-slow"):
            reader, writer = await asyncio.open_connection("127.0.0.1", settings.gateway_port)
            writer.write(begun)
            assert await asyncio.wait_for(reader.read(), 30) == b""
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", settings.gateway_port)
        for _ in range(2):  # a connection that asks again is not cut by the first request's clock
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await asyncio.wait_for(reader.readuntil(b"hi"), 30)).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.3)
        writer.close()
