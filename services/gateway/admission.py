"""How much is let in at a time: requests by model, bytes of bodies, uploads.

A bound that is reached answers at once (`Overloaded`, 503 with `Retry-After`): waiting in here would only hide the
queue from the caller. What is accepted waits in Kafka, where it is safe, not in this process.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shared.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.gateway.settings import GatewaySettings


class Admission:
    """The counts of one gateway."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._requests: Counter[str] = Counter()
        self._body_bytes = 0
        self._uploads = 0

    @contextmanager
    def request(self, model: str) -> Iterator[None]:
        """Hold one of the model's places.

        Raises:
            Overloaded: all are taken.
        """
        if self._requests[model] >= self._settings.max_in_flight_per_model:
            raise Overloaded(f"{self._requests[model]} requests of model {model!r} are in flight here already")
        self._requests[model] += 1
        try:
            yield
        finally:
            self._requests[model] -= 1
            if not self._requests[model]:
                del self._requests[model]  # a model that nobody asks for costs nothing

    @contextmanager
    def body(self) -> Iterator[BodyBudget]:
        """Hold the bytes of one body; they are added as they arrive."""
        budget = BodyBudget(self)
        try:
            yield budget
        finally:
            self._body_bytes -= budget.size_bytes

    def grow(self, size_bytes: int) -> None:
        """Count more bytes of bodies.

        Raises:
            Overloaded: they are too many.
        """
        if self._body_bytes + size_bytes > self._settings.max_bodies_bytes:
            raise Overloaded(f"{self._body_bytes} bytes of request bodies are held here already")
        self._body_bytes += size_bytes

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


class BodyBudget:
    """What one body has taken of the bytes for all."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.size_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Count bytes that arrived; raises `Overloaded` as `Admission.grow` does."""
        self._admission.grow(size_bytes)
        self.size_bytes += size_bytes
