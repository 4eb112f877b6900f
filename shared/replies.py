"""The Redis contract: every key in one place.

    aiaas:result:{model}:{id}    the answer (msgpack map, see `Result`), set once: first writer wins; TTL
    aiaas:claim:{model}:{id}     which record owns the id: [topic, partition, offset, tenant, input_sha256]; TTL
    aiaas:once:{model}:{id}      what an `Idempotency-Key` was first used for: a digest, set once; TTL
    aiaas:running:{model}        hash {topic}/{partition}:{run} -> request offsets that a worker has in a run right now
    aiaas:deaths:{model}         hash {topic}/{partition}:{offset} -> workers that died while running this record
    aiaas:quota:{tenant}         hash {tokens, at}: what is left of a tenant's quota, and when, by Redis's clock; TTL
    aiaas:probe                  written to learn whether Redis takes writes
    aiaas:replies:{gateway}      pub/sub: msgpack list of [model, id, payload or nil] that were answered

Answers, cancels and expiries go through one arbiter, `SET … NX GET EX`: whoever sets first wins, and everyone learns
the winner. Pub/sub forgets, so it only shortens a wait: whoever waits also reads (`shared.reply_waiter`).

A batch costs a worker two round trips, however many requests are in it: a script before the run (`screen`) and one
after it (`put`). A script that fails half way is simply run again, since nothing in it happens twice.

Redis is the index of answers, not their record: that is the outcome log. After the TTL, which `shared.keeping` shortens
as Redis fills, an id is free again.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from shared import logs, redis_client
from shared.codec import pack, unpack
from shared.errors import InvalidInput
from shared.keeping import Keeping
from shared.redis_client import Scripts, edge
from shared.redis_scripts import LEASE, PUT, SCREEN
from shared.results import Result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from redis.asyncio import Redis

    from shared.settings import PlatformSettings

_ENCODER: Final = msgspec.msgpack.Encoder()
ANNOUNCED_PAYLOAD_BYTES = 16 * 1024
"""Answers up to this size travel in the announcement itself."""


class Claim(msgspec.Struct, frozen=True, gc=False):
    """The record that an id belongs to."""

    topic: str
    partition: int
    offset: int
    tenant: str | None
    input_sha256: str

    @property
    def where(self) -> str:
        """The partition of the record, as the marks of runs and deaths name it."""
        return f"{self.topic}/{self.partition}"

    def same_record(self, other: Claim) -> bool:
        """Whether both are the same record, delivered again."""
        return (self.topic, self.partition, self.offset) == (other.topic, other.partition, other.offset)

    def same_request(self, other: Claim) -> bool:
        """Whether both ask the same for the same tenant."""
        return (self.tenant, self.input_sha256) == (other.tenant, other.input_sha256)


class Screened(msgspec.Struct, frozen=True, gc=False):
    """What Redis knows of a record before it runs: who owns its id, and the answer if there is one."""

    owner: Claim
    result: Result | None


class Reserved(msgspec.Struct, frozen=True, gc=False):
    """What Redis knows of an id that a caller's key stands for: the request it was first used for, and what became."""

    digest: str
    owner: Claim | None
    result: Result | None


class Ran(msgspec.Struct, frozen=True, gc=False):
    """A run that has ended, whatever came of it: its mark goes (see `Replies.screen`)."""

    model: str
    run: str
    partitions: tuple[str, ...]
    """As `topic/partition`."""

    @property
    def keys(self) -> tuple[str]:
        """The key that holds the mark."""
        return (_running_key(self.model),)

    @property
    def fields(self) -> tuple[str, ...]:
        """The number of fields of the mark, and the fields."""
        return (str(len(self.partitions)), *(f"{where}:{self.run}" for where in self.partitions))


class Replies:
    """Commands on the keys above. Each raises `RepliesUnavailable` when Redis is down, full or slow."""

    def __init__(self, redis: Redis, keeping: Keeping) -> None:
        self._redis = redis
        self._keeping = keeping
        self._scripts = Scripts(redis)

    @property
    def kept_s(self) -> int:
        """For how many seconds an answer that is stored now is kept."""
        return self._keeping.ttl_s

    async def ping(self) -> None:
        """Return if Redis takes a write: one that is full still answers a PING."""
        await self._mind_the_room()
        with edge():
            await self._redis.set("aiaas:probe", b"", ex=self.kept_s)

    async def put(
        self, results: Sequence[Result], reply_to: Sequence[str | None] = (), ran: Ran | None = None
    ) -> list[Result]:
        """Offer answers; returns, for each, the one that counts: the first that was ever offered for its id.

        `reply_to` names the gateway that waits for each, if one does: it is told the answer that counts. `ran` ends
        the mark that `screen` set. A claim is not kept longer than its answer, or the id would seem to be running.
        """
        if not results and ran is None:
            return []
        offered = [result.encode() for result in results]
        waiting = [(to, result, data) for to, result, data in zip(reply_to, results, offered, strict=False) if to]
        told = _messages(waiting)
        await self._mind_the_room()
        shortened = results if self._keeping.is_shortened else ()
        earlier = await self._scripts.run(
            PUT,
            keys=[
                *(_result_key(result.model_name, result.id) for result in results),
                *(_claim_key(result.model_name, result.id) for result in shortened),
                *(ran.keys if ran else ()),
            ],
            args=[self.kept_s, len(offered), len(shortened), *offered, *(ran.fields if ran else ()), *told],
        )
        if not earlier:
            return list(results)
        winners = [
            result if old is None or old == data else Result.decode(old)
            for result, data, old in zip(results, offered, earlier, strict=True)
        ]
        if told:
            again = zip(reply_to, winners, strict=False)
            await self._publish(_messages([(to, winner, winner.encode()) for to, winner in again if to]))
        return winners

    async def _mind_the_room(self) -> None:
        if self._keeping.is_due():
            with edge():
                used, most = await redis_client.memory(self._redis)
            self._keeping.adapt(used, most)

    async def get(self, keys: Sequence[tuple[str, str]]) -> list[Result | None]:
        """The answers of requests `(model, id)`, None where there is none."""
        if not keys:
            return []
        stored = await self._scripts.command("MGET", *[_result_key(model, id_) for model, id_ in keys])
        return [None if data is None else Result.decode(data) for data in stored]

    async def claimed(self, model: str, request_id: str) -> Claim | None:
        """The record that owns an id, once a worker or gateway has seen it."""
        with edge():
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

    async def screen(self, model: str, claims: Mapping[str, Claim], run: str | None = None) -> dict[str, Screened]:
        """For records about to run, by request id: claim the ids, and learn which are taken or answered.

        With `run` (`{owner}#{number}`) the records are marked as being in that run, until `put` ends it.
        """
        if not claims:
            return {}
        ids = list(claims)
        marks = marks_of(claims.values()) if run is not None else {}
        found = await self._scripts.run(
            SCREEN,
            keys=[
                *(_claim_key(model, request_id) for request_id in ids),
                *(_result_key(model, request_id) for request_id in ids),
                *([_running_key(model)] if marks else ()),
            ],
            args=[
                self.kept_s,
                len(ids),
                *(_packed(claim) for claim in claims.values()),
                *(part for where, offsets in marks.items() for part in (f"{where}:{run}", pack(offsets))),
            ],
        )
        if not found:
            return {request_id: Screened(claim, None) for request_id, claim in claims.items()}
        owners, results = found[: len(ids)], found[len(ids) :]
        return {
            request_id: Screened(
                owner=claim if owner is None else Claim(*unpack(owner)),
                result=None if data is None else Result.decode(data),
            )
            for (request_id, claim), owner, data in zip(claims.items(), owners, results, strict=True)
        }

    async def _publish(self, told: Sequence[str | bytes]) -> None:
        with edge():
            async with self._redis.pipeline(transaction=False) as pipe:
                for channel, message in zip(told[::2], told[1::2], strict=True):
                    pipe.publish(channel, message)
                await pipe.execute()

    @asynccontextmanager
    async def announcements(self, gateway: str) -> AsyncIterator[AsyncIterator[list[tuple[str, str, Result | None]]]]:
        """Subscribe to what is announced to a gateway: lists of `(model, id, result or None if it must be read)`."""
        async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            with edge():
                await pubsub.subscribe(_channel(gateway))

            async def messages() -> AsyncIterator[list[tuple[str, str, Result | None]]]:
                while True:
                    with edge():
                        message = await pubsub.get_message(timeout=1.0)
                    if message is not None:
                        yield _announced(message["data"])

            yield messages()

    # ------------------------------------------------------------------ the poison marker

    async def running(self, model: str) -> set[tuple[str, int]]:
        """The records of a model that are in a run right now, as (`topic/partition`, offset)."""
        with edge():
            marks = await self._redis.hgetall(_running_key(model))
        return {
            (_raw(field).decode().partition(":")[0], offset)
            for field, packed in marks.items()
            for offset in unpack(_raw(packed))
        }

    async def count_deaths(self, model: str, owner: str, partitions: Mapping[str, int]) -> dict[tuple[str, int], int]:
        """On taking over partitions (`{topic/partition: committed offset}`): deaths by (`topic/partition`, offset).

        Marks left by others than `owner` become one more death for each record in them that has no outcome yet.
        """
        running, deaths = _running_key(model), _deaths_key(model)
        with edge():
            async with self._redis.pipeline(transaction=True) as pipe:
                for field, packed in (await self._redis.hgetall(running)).items():
                    where, _, run = _raw(field).decode().partition(":")
                    if where not in partitions or run.startswith(f"{owner}#"):
                        continue
                    pipe.hdel(running, field)
                    for offset in unpack(_raw(packed)):
                        if offset >= partitions[where]:
                            pipe.hincrby(deaths, f"{where}:{offset}", 1)
                pipe.hgetall(deaths)
                counts = (await pipe.execute())[-1]
        found: dict[tuple[str, int], int] = {}
        for field, count in counts.items():
            where, _, offset = _raw(field).decode().partition(":")
            if where in partitions:
                found[where, int(offset)] = int(count)
        return found

    async def forget_deaths(self, model: str, coordinates: Iterable[tuple[str, int]]) -> None:
        """These records have their outcome."""
        fields = [f"{where}:{offset}" for where, offset in coordinates]
        if fields:  # HDEL without fields is an error
            with edge():
                await self._redis.hdel(_deaths_key(model), *fields)

    # ------------------------------------------------------------------ ids that callers ask for

    async def remember(self, model: str, request_id: str) -> None:
        """Keep a claim for another TTL. Only for requests without an answer: a claim must not outlive its answer."""
        with edge():
            await self._redis.expire(_claim_key(model, request_id), self.kept_s)

    async def reserve(self, model: str, request_id: str, digest: str, longer_s: float) -> Reserved:
        """Use an id for the request with this digest; returns what the id was first used for, and what became of it.

        The digest is kept for the TTL and `longer_s`, in which the answer comes: so it is not forgotten before that.
        """
        kept_s = self.kept_s + math.ceil(longer_s)
        with edge():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.set(_once_key(model, request_id), digest, nx=True, get=True, ex=kept_s)
                pipe.get(_claim_key(model, request_id))
                pipe.get(_result_key(model, request_id))
                first, owner, result = await pipe.execute()
        return Reserved(
            digest if first is None else _raw(first).decode(),
            None if owner is None else Claim(*unpack(_raw(owner))),
            None if result is None else Result.decode(_raw(result)),
        )

    # ------------------------------------------------------------------ tenants' quotas

    async def lease(self, tenant: str, *, rate: float, burst: int, wanted: int, back: int) -> tuple[int, float]:
        """Take up to `wanted` of a tenant's tokens, and give `back` what was not used of others.

        There are `burst` tokens at most, and `rate` more each second. Returns how many were got, and the seconds until
        there is another one.
        """
        keys, args = [f"aiaas:quota:{tenant}"], (repr(rate), burst, wanted, back)
        leased, after_ms = await self._scripts.run(LEASE, keys, args)
        return int(leased), int(after_ms) / 1000


@asynccontextmanager
async def connect(settings: PlatformSettings) -> AsyncIterator[Replies]:
    """The replies, for the life of a service."""
    async with redis_client.connect(settings) as redis:
        yield Replies(redis, Keeping(settings.result_ttl_s, settings.result_ttl_least_s))


async def server_facts(settings: PlatformSettings) -> dict[str, str]:
    """What `aiaas doctor` wants to know of the server: version, durability and eviction, by their names in Redis."""
    async with connect(settings) as replies:
        redis = replies._redis  # noqa: SLF001 - same module
        with edge():
            info = await redis.info("server")
            used, _ = await redis_client.memory(redis)
            config = await redis.config_get("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")
    found = {_raw(name).decode(): _raw(value or "").decode() for name, value in config.items() if name}
    return {"redis_version": str(info.get("redis_version")), "used_memory": str(used), **found}


def marks_of(claims: Iterable[Claim]) -> dict[str, list[int]]:
    """Request offsets by `topic/partition`."""
    marks: dict[str, list[int]] = {}
    for claim in claims:
        marks.setdefault(claim.where, []).append(claim.offset)
    return marks


def _packed(claim: Claim) -> bytes:
    return _ENCODER.encode((claim.topic, claim.partition, claim.offset, claim.tenant, claim.input_sha256))


def _messages(told: Iterable[tuple[str, Result, bytes]]) -> list[str | bytes]:
    """Channels and what is published there, in turns: one message a gateway, whatever the number of answers."""
    by_gateway: dict[str, list[tuple[str, str, bytes | None]]] = {}
    for gateway, result, payload in told:
        small = payload if len(payload) <= ANNOUNCED_PAYLOAD_BYTES else None
        by_gateway.setdefault(gateway, []).append((result.model_name, result.id, small))
    return [part for gateway, entries in by_gateway.items() for part in (_channel(gateway), _ENCODER.encode(entries))]


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


def _running_key(model: str) -> str:
    return f"aiaas:running:{model}"


def _deaths_key(model: str) -> str:
    return f"aiaas:deaths:{model}"


def _result_key(model: str, request_id: str) -> str:
    return f"aiaas:result:{model}:{request_id}"


def _claim_key(model: str, request_id: str) -> str:
    return f"aiaas:claim:{model}:{request_id}"


def _once_key(model: str, request_id: str) -> str:
    return f"aiaas:once:{model}:{request_id}"


def _channel(gateway: str) -> str:
    return f"aiaas:replies:{gateway}"
