"""Replay and back-test as a command asks for them: words into a selection, clients that are reached, the work."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.audit.records import Offsets, Selection
from services.audit.replay import backtest as testing
from services.audit.replay import replaying, runs
from services.audit.replay.contenders import contender
from services.audit.replay.feedback import feedback
from services.audit.sources import milliseconds, opened
from shared.artifacts import ArtifactStore
from shared.errors import InvalidInput, LogUnavailable
from shared.optimization import Policy
from shared.registry import Registry, fold

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from services.audit.replay.backtest import Outcome
    from services.audit.replay.runs import Runs
    from services.audit.replay.summary import Summary
    from services.audit.source import Source
    from shared.settings import PlatformSettings
    from shared.topics import Topics

    Tell = Callable[[str, float | None], None]

_REACH_S: Final = 20.0
_OFFSETS: Final = re.compile(
    r"((?P<topic>[^/]+)/)?(?P<partition>[0-9]{1,9}):(?P<first>[0-9]{1,18})(-(?P<last>[0-9]{1,18}))?"
)


@dataclass(frozen=True)
class Where:
    """Where records are read, and how fast they run again."""

    source: str = "auto"
    rows_per_s: float | None = None


def selected(
    names: Topics,
    *,
    model: str | None = None,
    from_: str | None = None,
    to: str | None = None,
    requests: Sequence[str] | None = None,
    offsets: Sequence[str] | None = None,
    tenant: str | None = None,
) -> Selection:
    """What the options select.

    Raises:
        InvalidInput: a time or a range is none.
    """
    since_ms, until_ms = span(from_, to)
    return Selection(
        model=model,
        since_ms=since_ms,
        until_ms=until_ms,
        request_ids=frozenset(requests) if requests else None,
        offsets=tuple(_offsets(text, model, names) for text in offsets) if offsets else None,
        tenant=tenant,
    )


def span(from_: str | None, to: str | None) -> tuple[int | None, int | None]:
    """Both times in ms since the epoch.

    Raises:
        InvalidInput: one is none, or the second not behind the first.
    """
    since_ms, until_ms = (None if text is None else milliseconds(text) for text in (from_, to))
    if since_ms is not None and until_ms is not None and since_ms >= until_ms:
        raise InvalidInput(f"--from {from_} is not before --to {to}")
    return since_ms, until_ms


def _offsets(text: str, model: str | None, names: Topics) -> Offsets:
    parts = _OFFSETS.fullmatch(text)
    if parts is None:
        raise InvalidInput(f"{text!r} is not [TOPIC/]PARTITION:FIRST[-LAST], such as 0:100-199")
    if parts["topic"] is None and model is None:
        raise InvalidInput(f"{text!r} names no topic: add it, or --model")
    topic = parts["topic"] or names.requests(model or "")
    first = int(parts["first"])
    last = first if parts["last"] is None else int(parts["last"])
    if last < first:
        raise InvalidInput(f"{text!r} ends before it begins")
    return Offsets(topic, int(parts["partition"]), first, last + 1)


async def replay(
    settings: PlatformSettings,
    where: Where,
    selection: Selection,
    tell: Tell,
    *,
    tolerance: float = 0.0,
    digest_check: bool = True,
    out: Path | None = None,
) -> Summary:
    """See `replaying.replay`.

    Raises:
        LogUnavailable: Kafka is not reached, or what that raises.
    """
    asked = replaying.Asked(selection, tolerance, digest_check, out)
    async with _reached(settings, where) as (source, to_workers):
        return await replaying.replay(source, to_workers, ArtifactStore(settings.artifact_store_url), asked, tell)


async def backtest(
    settings: PlatformSettings,
    where: Where,
    candidate: str,
    against: str,
    times_ms: tuple[int | None, int | None],
    tell: Tell,
    *,
    max_loss: float | None = None,
    max_requests: int = 20_000,
) -> Outcome:
    """See `backtest.backtest`; `max_loss` goes before the policy of the candidate's model.

    Raises:
        InvalidInput, UnknownModel, UnknownVersion, ModelNotReady: a name is none, or names nothing that could run.
        LogUnavailable: Kafka is not reached, or what that raises.
    """
    async with _reached(settings, where) as (source, to_workers):
        registry = Registry()
        async for entry in source.registry():
            registry = fold(registry, entry)
        one, other = contender(candidate, registry), contender(against, registry)
        policy = (registry.model(one.model).policy or Policy()).over(testing.DEFAULT)
        selection = Selection(model=other.model, since_ms=times_ms[0], until_ms=times_ms[1])
        match = testing.Match(one, other, selection, Policy(max_loss=max_loss).over(policy), max_requests)
        store = ArtifactStore(settings.artifact_store_url)
        return await testing.backtest(
            source, to_workers, store, match, lambda ids: feedback(settings, other.model, ids), tell
        )


@asynccontextmanager
async def _reached(settings: PlatformSettings, where: Where) -> AsyncIterator[tuple[Source, Runs]]:
    """The source and the way to the workers; not for ever, if a server is not there."""
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(_REACH_S):
                source = await stack.enter_async_context(opened(settings, where.source))
                to_workers = await stack.enter_async_context(runs.connected(settings, where.rows_per_s))
        except TimeoutError as err:
            servers = settings.kafka_bootstrap_servers
            raise LogUnavailable(f"Kafka at {servers} was not reached within {_REACH_S:g} s") from err
        yield source, to_workers
