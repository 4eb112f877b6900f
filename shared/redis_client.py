"""How Redis is reached: one pool of redis-py's connections for the life of a service, and its failures as ours.

Commands go through redis-py's client. Scripts, of which each batch of a worker awaits two, and reads of many answers go
straight to its connections: the client's way to them (pool, retries, metrics) costs three times the round trip itself.
A connection is kept for the next one; if that finds it closed, or to a server that is no primary any more, a fresh one
is tried, once. One timeout bounds each from the first byte out to the last one in; redis-py's own, which makes a task
for what goes out, is switched off meanwhile.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from hiredis import pack_command
from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, NoScriptError, ReadOnlyError, RedisError
from redis.maint_notifications import MaintNotificationsConfig

from shared import tls
from shared.errors import RepliesUnavailable

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Sequence

    from redis.asyncio.connection import AbstractConnection

    from shared.redis_scripts import Script
    from shared.settings import PlatformSettings

_MAX_CONNECTIONS: Final = 32
_MAX_IDLE: Final = 8


class edge:  # noqa: N801 - reads as a statement: `with edge():`
    """What redis-py raises becomes `RepliesUnavailable`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, err: BaseException | None, _traceback: object) -> None:
        if isinstance(err, RedisError | OSError | TimeoutError):
            raise RepliesUnavailable(f"Redis did not answer: {err or type(err).__name__}") from err


class Scripts:
    """Runs scripts on connections of a pool that it keeps to itself."""

    def __init__(self, redis: Redis) -> None:
        self._pool = redis.connection_pool
        self._timeout_s: float | None = self._pool.connection_kwargs.get("socket_timeout")
        self._idle: list[AbstractConnection] = []

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """What the script returns.

        Raises:
            RepliesUnavailable: Redis is down, full or slow.
        """
        words = (str(len(keys)), *keys, *(str(arg) if isinstance(arg, int) else arg for arg in args))
        with edge():
            try:
                return await self._call("EVALSHA", script.sha1, *words)
            except NoScriptError:  # it has restarted, or never saw it
                return await self._call("EVAL", script.source, *words)

    async def command(self, *words: str) -> Any:
        """The reply to a command, by the same short way.

        Raises:
            RepliesUnavailable: as `run`.
        """
        with edge():
            return await self._call(*words)

    async def _call(self, *command: str | bytes) -> Any:
        if self._idle:
            try:
                return await self._on(self._idle.pop(), command)
            except (RedisConnectionError, ReadOnlyError):
                await self._forget_idle()  # closed, or to what is no primary any more; so are the others, most likely
        connection: AbstractConnection = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # redis-py
        connection.socket_timeout = None
        return await self._on(connection, command)

    async def _on(self, connection: AbstractConnection, command: tuple[str | bytes, ...]) -> Any:
        try:
            packed = pack_command(command)  # type: ignore[arg-type]  # its stub allows one word
            async with asyncio.timeout(self._timeout_s):
                await connection.send_packed_command([packed], check_health=False)
                reply = await connection.read_response()
        except NoScriptError:
            await self._keep(connection)
            raise
        except BaseException:  # also a cancel: an answer that was not read would be the next command's
            await connection.disconnect(nowait=True)
            await self._release(connection)
            raise
        await self._keep(connection)
        return reply

    async def _keep(self, connection: AbstractConnection) -> None:
        """For the next script, or for whoever else needs one: a burst of scripts must not end with all of them here."""
        if len(self._idle) < _MAX_IDLE:
            self._idle.append(connection)
        else:
            await self._release(connection)

    async def _release(self, connection: AbstractConnection) -> None:
        connection.socket_timeout = self._timeout_s
        await self._pool.release(connection)

    async def _forget_idle(self) -> None:
        closed, self._idle = self._idle, []  # what comes back meanwhile is fresh
        for connection in closed:
            await connection.disconnect(nowait=True)
            await self._release(connection)


@asynccontextmanager
async def connect(settings: PlatformSettings) -> AsyncIterator[Redis]:
    """A client for the life of a service. Connections are opened by the first command, again after each failure."""
    pool = BlockingConnectionPool.from_url(
        settings.redis_url,
        protocol=2,  # with 3 redis-py spells out every message that is pushed, for a log line that nobody reads
        max_connections=_MAX_CONNECTIONS,
        timeout=settings.redis_timeout_s,
        socket_timeout=settings.redis_timeout_s,
        socket_connect_timeout=settings.redis_timeout_s,
        retry=Retry(NoBackoff(), 0),  # whoever calls knows whether and how long to retry
        # Behind the same name there may be a new primary by now: a connection to the old one is of no more use.
        retry_on_error=[ReadOnlyError],
        # While it listens for a managed service's notices, the pool gives out connections that the server has closed.
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    if settings.redis_url.startswith("rediss:"):
        pool.connection_class = _TlsConnection
        pool.connection_kwargs["context"] = tls.client_context(
            settings.redis_ssl_cafile, settings.redis_ssl_certfile, settings.redis_ssl_keyfile
        )
    redis = Redis(connection_pool=pool)
    try:
        yield redis
    finally:
        await redis.aclose(close_connection_pool=True)


async def memory(redis: Redis) -> tuple[int, int]:
    """Bytes used and their bound, 0 if there is none, or if this user may not ask (`INFO`)."""
    try:
        told = await redis.info("memory")
    except NoPermissionError:
        return 0, 0
    return told["used_memory"], told["maxmemory"]


class _TlsConnection(SSLConnection):
    """redis-py's own context trusts the system's authorities besides the given one, and is made for each connection."""

    def __init__(self, *, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context.context = context
