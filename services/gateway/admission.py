"""How much is let in at a time: requests by model and lane, bytes of bodies, uploads.

A bound that is reached answers at once (`Overloaded`, 503 with `Retry-After`): waiting in here would only hide the
queue from the caller. What is accepted waits in Kafka, where it is safe, not in this process. Two things are asked of
a request before its body is read: whether there is a place (`limits`, learned from this gateway's own answers), and
whether what waits in the log leaves it any chance (`backlog`, told by the workers); and once its deadline is known,
whether it would meet that.

There are two lanes, and a quarter of the places is kept for each: a flood of the one never shuts the other out. A
priority that only the body tells is asked for there: a request that finds the normal lane full, and the other not, is
let in until its body says (`Place.has_read`, `Place.confirm`). Tenants' quotas are `quotas`.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self

from services.gateway.backlog import Backlog, places
from services.gateway.limits import InFlightLimit
from shared.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from services.gateway.settings import GatewaySettings
    from shared.heartbeats import Heartbeats
    from shared.registry import Registry

_KEPT_SHARE: Final = 4
"""One place in so many is kept for each lane."""


class Admission:
    """The counts of one gateway."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._models: defaultdict[str, _Model] = defaultdict(lambda: _Model(settings))
        self._backlog = Backlog()
        self._body_bytes = 0
        self._uploads = 0

    def request(self, model: str, *, high: bool | None = False) -> Place:
        """Hold one of the model's places: `with admission.request(model) as place`.

        The model must be known to the registry: what is learned of it is kept. `high` is the lane; None if only the
        body tells, and then `has_read` and `confirm` of the place must be called.

        Raises:
            Overloaded: all places are taken, or what waits leaves no deadline to be met. On entering.
        """
        return Place(self, self._models[model], model, high)

    def meets(self, model: str, timeout_s: float) -> None:
        """Return if a request of the normal lane that has so long to live may be answered in time.

        Raises:
            Overloaded: what is before it takes longer.
        """
        if self._backlog.wait_s(model, time.monotonic()) > timeout_s:
            raise self._hopeless(model, timeout_s)

    def _hopeless(self, model: str, timeout_s: float) -> Overloaded:
        wait_s = self._backlog.wait_s(model, time.monotonic())
        return Overloaded(
            f"what waits for model {model!r} takes {wait_s:.1f} s, and the request has {timeout_s:g} s",
            wait_s - timeout_s,
        )

    def look(self, registry: Registry, heartbeats: Heartbeats) -> None:
        """Learn from the workers' heartbeats what waits, and what they can hold. To be called every second or so."""
        beats = heartbeats.heard_lately()
        self._backlog.heard(beats)
        held = places(registry, beats)
        for name, model in self._models.items():
            model.limit.workers_hold(held.get(name, 0))

    def refused_for_s(self, name: str) -> float | None:
        """In how many seconds to come again, if a model's normal lane would be refused now; None if it has room.

        None for models that were never asked for.
        """
        model = self._models.get(name)
        if model is None:
            return None
        if not model.has_place(high=False):
            return model.refused()
        wait_s = self._backlog.wait_s(name, time.monotonic())
        return wait_s - self.longest_s if wait_s > self.longest_s else None

    @property
    def longest_s(self) -> float:
        """No request has longer to live."""
        return self._settings.max_request_timeout_s

    @contextmanager
    def body(self) -> Iterator[BodyBudget]:
        """Hold the bytes of one body; they are added as they arrive."""
        budget = BodyBudget(self)
        try:
            yield budget
        finally:
            self.shrink(budget.size_bytes)

    def grow(self, size_bytes: int) -> None:
        """Count more bytes of bodies.

        Raises:
            Overloaded: they are too many.
        """
        if self._body_bytes + size_bytes > self._settings.max_bodies_bytes:
            raise Overloaded(f"{self._body_bytes} bytes of request bodies are held here already")
        self._body_bytes += size_bytes

    def shrink(self, size_bytes: int) -> None:
        """Count them no more."""
        self._body_bytes -= size_bytes

    @contextmanager
    def upload(self) -> Iterator[None]:
        """Hold one of the places for uploads.

        Raises:
            Overloaded: all are taken.
        """
        if self._uploads >= self._settings.max_uploads:
            raise Overloaded(f"{self._uploads} uploads are running here already")
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1


class _Model:
    """The places of one model, and who has them."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.limit = InFlightLimit(most=settings.max_in_flight_per_model, queue_s=settings.max_queue_s)
        self._lanes = [0, 0]  # normal, high

    def take(self, *, high: bool) -> bool:
        """Take a place in a lane, if it has one."""
        if not self.has_place(high=high):
            return False
        self._lanes[high] += 1
        self.limit.began(time.monotonic())
        return True

    def has_place(self, *, high: bool) -> bool:
        """Whether a lane has one: of all, or of those that are kept for it."""
        value = self.limit.value
        return self.limit.in_flight < value or self._lanes[high] < value // _KEPT_SHARE

    def refused(self) -> float:
        """A request was refused; returns after how many seconds to come again."""
        self.limit.refused()
        return self.limit.in_flight / self.limit.rate if self.limit.rate else math.inf

    def raise_lane(self) -> None:
        """A request of the normal lane turned out to be of the high one."""
        self._lanes[False] -= 1
        self._lanes[True] += 1

    def give_back(self, *, high: bool, answered: bool) -> None:
        """Free a place."""
        self._lanes[high] -= 1
        self.limit.ended(time.monotonic(), answered=answered)


class Place:
    """One request's place, from before its body to its answer. Set `answered` when a worker's answer came."""

    __slots__ = ("_admission", "_asked", "_high", "_model", "_name", "_refusal", "answered")

    def __init__(self, admission: Admission, model: _Model, name: str, high: bool | None) -> None:
        self._admission = admission
        self._model = model
        self._name = name
        self._asked = high
        self._high = bool(high)
        self._refusal: Overloaded | None = None
        """What to say if the body does not ask for the high lane, in which alone there is a place."""
        self.answered = False

    def __enter__(self) -> Self:
        self.take()
        return self

    def take(self) -> None:
        """Take the place; `leave` must follow. Raises `Overloaded` as `Admission.request` has it."""
        if self._asked is not True:
            try:
                self._admission.meets(self._name, self._admission.longest_s)
            except Overloaded as err:
                self._refusal = err
        if self._refusal is None and self._model.take(high=self._high):
            return
        refusal = self._refusal = self._refusal or self._full()
        if self._asked is None and self._model.take(high=True):
            self._high = True
            return
        raise refusal

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, _: TracebackType | None) -> None:
        self.leave()

    def leave(self) -> None:
        """Give the place back."""
        self._model.give_back(high=self._high, answered=self.answered)

    def has_read(self, body: bytes) -> None:
        """The body is there. Before anybody parses it: does it name a priority at all, if that is what it takes?

        Raises:
            Overloaded: it takes that, and it does not.
        """
        if self._refusal is not None and b"priority" not in body:
            raise self._refusal

    def confirm(self, *, high: bool, timeout_s: float) -> None:
        """Lane and deadline are known.

        Raises:
            Overloaded: the lane is the normal one, and that is full, or what waits in it leaves no time to be answered.
        """
        if high:
            if not self._high:
                self._high = True
                self._model.raise_lane()
        elif self._refusal is not None:
            raise self._refusal
        else:
            self._admission.meets(self._name, timeout_s)

    def _full(self) -> Overloaded:
        many = self._model.limit.in_flight
        return Overloaded(f"{many} requests of model {self._name!r} are in flight here already", self._model.refused())


class BodyBudget:
    """What one body has taken of the bytes for all."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.size_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Count bytes that arrived; raises `Overloaded` as `Admission.grow` does."""
        self._admission.grow(size_bytes)
        self.size_bytes += size_bytes
