"""`/live` and `/ready` of services without other HTTP."""

from __future__ import annotations

import asyncio
import json

import pytest

from shared import health
from support.ports import free_port


@pytest.fixture
async def service():
    """A service whose `waiting_for` a test may set; `ask` sends bytes and gives status and body."""
    there = Service(free_port())
    async with health.served("127.0.0.1", there.port, lambda: there.waiting_for):
        yield there


class Service:
    def __init__(self, port):
        self.port = port
        self.waiting_for = None

    async def get(self, path):
        answer = await self.ask(b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % path)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head
        return int(head.split(b" ")[1]), json.loads(body)

    async def ask(self, request):
        """All that comes back until the connection is closed."""
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(request)
                return await reader.read()
            except ConnectionResetError:
                return b""  # it closed before it had read everything
            finally:
                writer.close()


async def test_ready_says_what_it_waits_for(service):
    service.waiting_for = "the registry's log"
    assert await service.get(b"/ready") == (503, {"ready": False, "waiting_for": "the registry's log"})
    assert await service.get(b"/live") == (200, {"live": True})
    service.waiting_for = None
    assert await service.get(b"/ready") == (200, {"ready": True})


async def test_there_is_nothing_else(service):
    assert (await service.get(b"/"))[0] == 404
    assert (await service.get(b"/ready/"))[0] == 404


@pytest.mark.parametrize("garbage", [b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x00\r\n\r\n", b"a" * 100_000])
async def test_garbage_gets_404_or_is_closed_and_the_next_is_served(service, garbage):
    answer = await service.ask(garbage)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 404 ")
    assert await service.get(b"/live") == (200, {"live": True})


async def test_who_says_nothing_is_closed_in_a_while(service, monkeypatch):
    monkeypatch.setattr(health, "_READ_TIMEOUT_S", 0.05)
    assert await service.ask(b"GET /live") == b""


async def test_no_port_no_server():
    async with health.served("127.0.0.1", None, lambda: None):
        pass


async def test_a_port_that_is_taken_stops_the_start(service):
    with pytest.raises(OSError, match="in use"):
        async with health.served("127.0.0.1", service.port, lambda: None):
            pytest.fail("there is one already")
