"""What the routes work with, and whether it is there.

HTTP is served from the first moment, so that health can be asked and says what is missing; `Gateway` is that first
half. `Backbone` is the other: the clients of Kafka, Redis and the store, there once `app` has connected them. A route
that needs it asks `Gateway.backbone` and gets it or a 503.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.gateway.admission import Admission
from services.gateway.at_the_door import AtTheDoor
from services.gateway.deadlines import Deadlines
from services.gateway.quotas import Quotas
from shared.errors import LogUnavailable, Stopping

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from aiokafka import AIOKafkaProducer

    from services.gateway.job_progress import JobProgress
    from services.gateway.request_log import RequestLog
    from services.gateway.request_spans import RequestSpans
    from services.gateway.request_topics import RequestTopics
    from services.gateway.request_watch import RequestWatch
    from services.gateway.settings import GatewaySettings
    from shared.artifacts import ArtifactStore
    from shared.heartbeats import Heartbeats
    from shared.registry_log import RegistryLog
    from shared.replies import Replies
    from shared.reply_waiter import ReplyWaiter, Waiter
    from shared.signature import Signature
    from shared.statistics import Statistics

_PROBE_INTERVAL_S = 2.0
_PROBE_TIMEOUT_S = 3.0
_WORKERS_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Backbone:
    """Connected clients."""

    producer: AIOKafkaProducer
    requests: RequestLog
    log: RegistryLog
    topics: RequestTopics
    heartbeats: Heartbeats
    statistics: Statistics
    replies: Replies
    waiter: ReplyWaiter
    watch: RequestWatch
    store: ArtifactStore
    progress: JobProgress


class Gateway:
    """One instance, from the first connection to the last."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.spans: RequestSpans | None = None
        """Where requests are traced."""
        self.topics = settings.topics
        self.admission = Admission(settings)
        self.quotas = Quotas(settings.tenant_quotas)
        self.answered: Counter[int] = Counter()
        self.unready = 0
        """Of these, answers 503 to GET and HEAD."""
        """Answers by status since the last metric event."""
        self.door = AtTheDoor(self.admission, self.answered)
        self.in_flight = 0
        self.deadlines = Deadlines()
        self.fitting: dict[Hashable, Signature] = {}
        """Forms of requests that fit a signature, as `infer.check_fits` has found."""
        self._backbone: Backbone | None = None
        self._log_answers = False
        self._stopping = False
        self._waits: set[Waiter] = set()

    @property
    def backbone(self) -> Backbone:
        """The connected clients.

        Raises:
            LogUnavailable: they are not connected yet.
        """
        if self._backbone is None:
            raise LogUnavailable("the gateway is starting: it is not connected to Kafka yet")
        return self._backbone

    def waiting_for(self) -> list[str]:
        """What keeps this instance from accepting requests."""
        if self._stopping:
            return ["its successor: this instance is stopping"]
        if self._backbone is None:
            return ["kafka"]
        missing = {"kafka: the registry's log": self._log_answers, "redis": self._backbone.waiter.healthy}
        return [what for what, there in missing.items() if not there]

    def connected(self, backbone: Backbone) -> None:
        """The clients are connected, and the registry has caught up."""
        self._backbone = backbone
        self._log_answers = True

    async def probe_log(self) -> None:
        """Look until cancelled whether Kafka tells the end of the registry's log, and whether we have read up to it."""
        while True:
            await asyncio.sleep(_PROBE_INTERVAL_S)
            try:
                async with asyncio.timeout(_PROBE_TIMEOUT_S):
                    await self.backbone.log.caught_up()
                self._log_answers = True
            except (TimeoutError, LogUnavailable):
                self._log_answers = False

    async def watch_workers(self) -> None:
        """Tell admission until cancelled what the workers say of themselves, and the log how many were turned away."""
        while True:
            self.admission.look(self.backbone.log.registry, self.backbone.heartbeats)
            self.door.tell()
            await asyncio.sleep(_WORKERS_INTERVAL_S)

    # ------------------------------------------------------------------ stopping

    @contextmanager
    def waiting(self, answer: Waiter) -> Iterator[None]:
        """Somebody waits for this answer: `give_up` ends the wait."""
        self.begin_wait(answer)
        try:
            yield
        finally:
            self.end_wait(answer)

    def begin_wait(self, answer: Waiter) -> None:
        """As `waiting`, until `end_wait`."""
        self._waits.add(answer)

    def end_wait(self, answer: Waiter) -> None:
        """Nobody waits for it any more."""
        self._waits.discard(answer)

    def stopping(self) -> None:
        """Readiness says no from here on, so that balancers send nothing more. Streams end: they go on elsewhere."""
        self._stopping = True
        if self._backbone is not None:
            self._backbone.watch.stop()

    def give_up(self) -> None:
        """The time to drain is over: whoever still waits is told so. Their requests run on; nothing is lost."""
        for answer in tuple(self._waits):
            if not answer.done():
                answer.set_exception(
                    Stopping("the gateway is shutting down; the request runs on: ask another instance for its id")
                )
