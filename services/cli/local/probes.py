"""What ready means: small questions that only a working server answers.

A probe returns None when the answer is right, else a sentence with what it saw instead; the last one ends up in the
error when a child does not become ready in time. Each is bounded by a few seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from services.cli.local.ports import LOOPBACK
from shared import replies
from shared.errors import RepliesUnavailable
from shared.kafka import client_options, refusals_in_words

if TYPE_CHECKING:
    import ssl

    from shared.settings import PlatformSettings

Probe = Callable[[], Awaitable[str | None]]
_TIMEOUT_S = 3.0
_ANSWER_BYTES = 4096


def http(port: int, path: str, tls: ssl.SSLContext | None = None) -> Probe:
    """`GET path` on the loopback interface answers 200."""
    what = f"GET {LOOPBACK}:{port}{path}"

    async def ask() -> str | None:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(LOOPBACK, port, ssl=tls)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nhost: {LOOPBACK}:{port}\r\nconnection: close\r\n\r\n".encode())
                answer = b""
                while len(answer) < _ANSWER_BYTES and (more := await reader.read(_ANSWER_BYTES)):
                    answer += more
            finally:
                writer.close()
        status_line, _, rest = answer.decode(errors="replace").partition("\r\n")
        if status_line.split(" ")[1:2] == ["200"]:
            return None
        body = rest.partition("\r\n\r\n")[2].strip()
        return f"{what} answered {status_line or 'nothing'} {body}"

    return _refusals_as_words(what, ask)


def kafka(settings: PlatformSettings) -> Probe:
    """The cluster describes itself and has a broker; the client logs nothing while nobody listens yet."""
    what = f"Kafka at {settings.kafka_bootstrap_servers}"

    async def ask() -> str | None:
        async with asyncio.timeout(_TIMEOUT_S):
            await _connect(settings.kafka_bootstrap_servers)
            admin = AIOKafkaAdminClient(**client_options(settings), request_timeout_ms=int(_TIMEOUT_S * 1000))
            try:
                with refusals_in_words():
                    await admin.start()
                cluster = await admin.describe_cluster()
            finally:
                await admin.close()
        return None if cluster["brokers"] else f"{what} answers and has no broker yet"

    return _refusals_as_words(what, ask)


def redis(settings: PlatformSettings) -> Probe:
    """Redis answers PING: not while it still loads its data."""

    async def ask() -> str | None:
        async with asyncio.timeout(_TIMEOUT_S), replies.connect(settings) as client:
            await client.ping()
        return None

    return _refusals_as_words("Redis", ask)


async def _connect(bootstrap_servers: str) -> None:
    host, _, port = bootstrap_servers.split(",", maxsplit=1)[0].rpartition(":")
    _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.close()


def _refusals_as_words(what: str, ask: Probe) -> Probe:
    @wraps(ask)
    async def probe() -> str | None:
        try:
            return await ask()
        except TimeoutError:
            return f"{what} did not answer within {_TIMEOUT_S:g} s"
        except (OSError, KafkaError, RepliesUnavailable) as err:
            return f"{what} did not answer: {err}"

    return probe
