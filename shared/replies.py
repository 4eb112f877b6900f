"""The Redis contract: every key in one place.

    aiaas:result:{model}:{id}    the answer (msgpack map, see `Result`), set once: first writer wins; TTL
    aiaas:claim:{model}:{id}     which record owns the id: [topic, partition, offset, tenant, input_sha256]; TTL
    aiaas:running:{model}        hash {partition}:{run} -> request offsets that a worker has in a run right now
    aiaas:deaths:{model}         hash {partition}:{offset} -> workers that died while running this record
    aiaas:probe                  written to learn whether Redis takes writes
    aiaas:replies:{gateway}      pub/sub: msgpack list of [model, id, payload or nil] that were answered

Answers, cancels and expiries go through one arbiter, `SET … NX GET EX`: whoever sets first wins, and everyone learns
the winner. Pub/sub forgets, so it only shortens a wait: whoever waits also reads (`shared.reply_waiter`).

Redis is the index of answers, not their record: that is the outcome log. After the TTL an id is free again.
"""

from __future__ import annotations

import dataclasses
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from shared import logs
from shared.codec import pack, unpack
from shared.errors import InvalidInput, RepliesUnavailable
from shared.tensors import Tensor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from shared.events import Status
    from shared.settings import PlatformSettings

ANNOUNCED_PAYLOAD_BYTES = 16 * 1024
"""Answers up to this size travel in the announcement itself."""
_MAX_CONNECTIONS = 32
_Field = bytes | bytearray | memoryview | str | int | float
"""What redis-py takes as the field or value of a hash."""


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to a request as it lies in Redis; `error` is `{code, message}`, `receipt` the full map or None.

    A cancel or a gateway's expiry has no receipt yet: the worker makes it when it meets the record.
    """

    id: str
    status: Status
    model_name: str
    model_version: int | None = None
    outputs: tuple[Tensor, ...] = ()
    error: Mapping[str, str] | None = None
    receipt: Mapping[str, Any] | None = None

    def encode(self) -> bytes:
        """The stored bytes."""
        return pack(
            {
                "id": self.id,
                "status": self.status,
                "model_name": self.model_name,
                "model_version": self.model_version,
                "outputs": [
                    {"name": t.name, "datatype": t.datatype, "shape": list(t.shape), "data": bytes(t.data)}
                    for t in self.outputs
                ],
                "error": self.error,
                "receipt": self.receipt,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Result:
        """The inverse of `encode`. Redis is ours: bytes that are not a result are a bug, and raise as one.

        Fields that it does not know are a newer writer's, and are left out.
        """
        stored = unpack(data)
        outputs = tuple(Tensor(o["name"], o["datatype"], tuple(o["shape"]), o["data"]) for o in stored["outputs"])
        known = {field.name: stored[field.name] for field in dataclasses.fields(cls) if field.name in stored}
        return cls(**{**known, "outputs": outputs})


@dataclass(frozen=True, slots=True)
class Claim:
    """The record that an id belongs to."""

    topic: str
    partition: int
    offset: int
    tenant: str | None
    input_sha256: str

    def same_record(self, other: Claim) -> bool:
        """Whether both are the same record, delivered again."""
        return (self.topic, self.partition, self.offset) == (other.topic, other.partition, other.offset)

    def same_request(self, other: Claim) -> bool:
        """Whether both ask the same for the same tenant."""
        return (self.tenant, self.input_sha256) == (other.tenant, other.input_sha256)


@dataclass(frozen=True, slots=True)
class Screened:
    """What Redis knows of a record before it runs: who owns its id, and the answer if there is one."""

    owner: Claim
    result: Result | None


class Replies:
    """Commands on the keys above. Each raises `RepliesUnavailable` when Redis is down, full or slow."""

    def __init__(self, redis: Redis, ttl_s: int) -> None:
        self._redis = redis
        self._ttl_s = ttl_s

    async def ping(self) -> None:
        """Return if Redis takes a write: one that is full still answers a PING."""
        with _edge():
            await self._redis.set("aiaas:probe", b"", ex=self._ttl_s)

    async def put(self, results: Sequence[Result]) -> list[Result]:
        """Offer answers; returns, for each, the one that counts: the first that was ever offered for its id."""
        with _edge():
            async with self._redis.pipeline(transaction=False) as pipe:
                for result in results:
                    key = _result_key(result.model_name, result.id)
                    pipe.set(key, result.encode(), nx=True, get=True, ex=self._ttl_s)
                stored = await pipe.execute()
        return [offered if old is None else Result.decode(old) for offered, old in zip(results, stored, strict=True)]

    async def get(self, keys: Sequence[tuple[str, str]]) -> list[Result | None]:
        """The answers of requests `(model, id)`, None where there is none."""
        if not keys:
            return []
        with _edge():
            stored = await self._redis.mget([_result_key(model, id_) for model, id_ in keys])
        return [None if data is None else Result.decode(_raw(data)) for data in stored]

    async def claimed(self, model: str, request_id: str) -> Claim | None:
        """The record that owns an id, once a worker or gateway has seen it."""
        with _edge():
            data = await self._redis.get(_claim_key(model, request_id))
        return None if data is None else Claim(*unpack(_raw(data)))

    async def claim(self, model: str, request_id: str, claim: Claim) -> Claim:
        """Say which record owns an id; returns the one that does, which is the first that said so."""
        screened = await self.screen(model, {request_id: claim})
        return screened[request_id].owner

    async def cancel(self, model: str, request_id: str) -> Result:
        """Offer `cancelled` as the answer; returns the answer that counts."""
        error = {"code": "cancelled", "message": "cancelled by the caller"}
        [winner] = await self.put([Result(id=request_id, status="cancelled", model_name=model, error=error)])
        return winner

    async def screen(self, model: str, claims: Mapping[str, Claim]) -> dict[str, Screened]:
        """For records about to run, by request id: claim the ids, and learn which are taken or answered."""
        if not claims:
            return {}
        with _edge():
            async with self._redis.pipeline(transaction=False) as pipe:
                for request_id, claim in claims.items():
                    fields = [claim.topic, claim.partition, claim.offset, claim.tenant, claim.input_sha256]
                    pipe.set(_claim_key(model, request_id), pack(fields), nx=True, get=True, ex=self._ttl_s)
                pipe.mget([_result_key(model, request_id) for request_id in claims])
                *owners, stored = await pipe.execute()
        return {
            request_id: Screened(
                owner=claim if owner is None else Claim(*unpack(owner)),
                result=None if data is None else Result.decode(data),
            )
            for (request_id, claim), owner, data in zip(claims.items(), owners, stored, strict=True)
        }

    async def announce(self, channel_results: Mapping[str, Sequence[Result]]) -> None:
        """Tell waiting gateways, by instance, what was answered."""
        with _edge():
            async with self._redis.pipeline(transaction=False) as pipe:
                for gateway, results in channel_results.items():
                    pipe.publish(_channel(gateway), pack([_announcement(result) for result in results]))
                await pipe.execute()

    @asynccontextmanager
    async def announcements(self, gateway: str) -> AsyncIterator[AsyncIterator[list[tuple[str, str, Result | None]]]]:
        """Subscribe to what is announced to a gateway: lists of `(model, id, result or None if it must be read)`."""
        async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            with _edge():
                await pubsub.subscribe(_channel(gateway))

            async def messages() -> AsyncIterator[list[tuple[str, str, Result | None]]]:
                while True:
                    with _edge():
                        message = await pubsub.get_message(timeout=1.0)
                    if message is not None:
                        yield _announced(message["data"])

            yield messages()

    # ------------------------------------------------------------------ the poison marker

    async def mark_running(self, model: str, run: str, offsets: Mapping[int, Sequence[int]]) -> None:
        """Before a run (`{owner}#{number}`): these request offsets, by partition, are in it. Removed by `mark_ran`."""
        if not offsets:
            return
        with _edge():
            fields: dict[_Field, _Field] = {
                f"{partition}:{run}": pack(list(members)) for partition, members in offsets.items()
            }
            await self._redis.hset(f"aiaas:running:{model}", mapping=fields)

    async def mark_ran(self, model: str, run: str, partitions: Iterable[int]) -> None:
        """After a run, whatever came of it: the process lives."""
        await self._delete(f"aiaas:running:{model}", [f"{partition}:{run}" for partition in partitions])

    async def count_deaths(self, model: str, owner: str, partitions: Mapping[int, int]) -> dict[tuple[int, int], int]:
        """On taking over partitions (`{partition: committed offset}`): deaths by (partition, offset).

        Marks left by others than `owner` become one more death for each record in them that has no outcome yet.
        """
        running, deaths = f"aiaas:running:{model}", f"aiaas:deaths:{model}"
        with _edge():
            async with self._redis.pipeline(transaction=True) as pipe:
                for field, packed in (await self._redis.hgetall(running)).items():
                    number, _, run = _raw(field).decode().partition(":")
                    partition = int(number)
                    if partition not in partitions or run.startswith(f"{owner}#"):
                        continue
                    pipe.hdel(running, field)
                    for offset in unpack(_raw(packed)):
                        if offset >= partitions[partition]:
                            pipe.hincrby(deaths, f"{partition}:{offset}", 1)
                pipe.hgetall(deaths)
                counts = (await pipe.execute())[-1]
        found: dict[tuple[int, int], int] = {}
        for field, count in counts.items():
            partition, offset = (int(part) for part in field.split(b":"))
            if partition in partitions:
                found[partition, offset] = int(count)
        return found

    async def forget_deaths(self, model: str, coordinates: Iterable[tuple[int, int]]) -> None:
        """These records have their outcome."""
        await self._delete(f"aiaas:deaths:{model}", [f"{partition}:{offset}" for partition, offset in coordinates])

    async def _delete(self, key: str, fields: list[str]) -> None:
        if fields:  # HDEL without fields is an error
            with _edge():
                await self._redis.hdel(key, *fields)


@asynccontextmanager
async def connect(settings: PlatformSettings) -> AsyncIterator[Replies]:
    """A client for the life of a service. Connections are opened by the first command, again after each failure."""
    pool = BlockingConnectionPool.from_url(
        settings.redis_url,
        max_connections=_MAX_CONNECTIONS,
        timeout=settings.redis_timeout_s,
        socket_timeout=settings.redis_timeout_s,
        socket_connect_timeout=settings.redis_timeout_s,
        retry=Retry(NoBackoff(), 0),  # whoever calls knows whether and how long to retry
    )
    redis = Redis(connection_pool=pool)
    try:
        yield Replies(redis, settings.result_ttl_s)
    finally:
        await redis.aclose(close_connection_pool=True)


async def server_facts(settings: PlatformSettings) -> dict[str, str]:
    """What `aiaas doctor` wants to know of the server: version, durability and eviction, by their names in Redis."""
    async with connect(settings) as replies:
        redis = replies._redis  # noqa: SLF001 - same module
        with _edge():
            info = await redis.info("server")
            config = await redis.config_get("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")
    found = {_raw(name).decode(): _raw(value or "").decode() for name, value in config.items() if name}
    return {"redis_version": str(info.get("redis_version")), **found}


def _announcement(result: Result) -> list[Any]:
    payload = result.encode()
    return [result.model_name, result.id, payload if len(payload) <= ANNOUNCED_PAYLOAD_BYTES else None]


def _announced(data: bytes) -> list[tuple[str, str, Result | None]]:
    """The inverse, for all of one message. Anyone on this Redis may publish; what is lost here is read later."""
    try:
        return [
            (model, request_id, None if payload is None else Result.decode(payload))
            for model, request_id, payload in unpack(data)
        ]
    except (InvalidInput, TypeError, ValueError, LookupError) as err:
        logs.get().warning("ignored an announcement", error=str(err))
        return []


def _raw(value: bytes | str) -> bytes:
    """A reply of Redis: bytes, since `decode_responses` is off; redis-py's types allow for both."""
    return value if isinstance(value, bytes) else value.encode()


def _result_key(model: str, request_id: str) -> str:
    return f"aiaas:result:{model}:{request_id}"


def _claim_key(model: str, request_id: str) -> str:
    return f"aiaas:claim:{model}:{request_id}"


def _channel(gateway: str) -> str:
    return f"aiaas:replies:{gateway}"


class _edge:  # noqa: N801 - reads as a statement: `with _edge():`
    """What redis-py raises becomes `RepliesUnavailable`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, err: BaseException | None, _traceback: object) -> None:
        if isinstance(err, RedisError | OSError | TimeoutError):
            raise RepliesUnavailable(f"Redis did not answer: {err or type(err).__name__}") from err
