"""What is measured: each system serves one model at a time, and can be stopped while another is measured.

    onnxruntime ONNX Runtime without a server, at batch sizes 1 to 32 (for the slow models)
    bare        Starlette and ONNX Runtime in one process: the measure of all others
    http        this platform, by HTTP                    http-2     the same with two workers
    kafka       this platform, by Kafka alone             kafka-2    the same with two workers
    mosec, mlserver, mlserver-kafka, litserve, bentoml    peers, each in an environment of its own

A system that is not under test gets SIGSTOP, our own Kafka and Redis too: it keeps its warmth and takes no time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from benchmarks.serving.models import oip_output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from benchmarks.serving.models import Array, Model
    from benchmarks.serving.processes import Tree


class NotHere(Exception):
    """A system can't be measured on this machine; the message says why."""


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """Where a system takes inferences by HTTP, the requests' bodies in its own form, and how its answers are read."""

    host: str
    port: int
    path: str
    bodies: Sequence[bytes]
    read: Callable[[str], Array] = oip_output

    def requests(self) -> list[bytes]:
        """The complete requests."""
        return [self._request(body) for body in self.bodies]

    def _request(self, body: bytes) -> bytes:
        head = f"POST {self.path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\ncontent-type: application/json\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


@dataclass(frozen=True, slots=True)
class KafkaTarget:
    """Where a system takes inferences by Kafka, and where it says that one is done."""

    bootstrap_servers: str
    requests: str
    answers: str
    bodies: Sequence[bytes]
    headers: Mapping[str, str]
    success_mark: str
    """What stands in every answer that is a success and in no other."""
    takers: Sequence[Tree]
    """The processes that take requests: stopped while requests are produced beforehand."""
    id_header: str = ""
    """The header that carries a request's id, there and back; empty: the record's key does."""
    redis_url: str | None = None
    result_key: str = ""
    """Where the result of an id lies in Redis, with `{id}` for the id."""


@dataclass(frozen=True, slots=True)
class DirectTarget:
    """A model file to run without any server, on the rows of these bodies."""

    path: Path
    threads: int
    bodies: Sequence[bytes]


class System(Protocol):
    """One way to have a model served."""

    @property
    def name(self) -> str:
        """As in the table."""

    def start(self, model: Model) -> None:
        """Serve the model; returns when it answers.

        Raises:
            NotHere: it can't be started on this machine.
        """

    def stop(self) -> None:
        """End what `start` began."""

    def pause(self) -> None:
        """Take no CPU time from now on."""

    def resume(self) -> None:
        """Undo `pause`; returns when it answers again."""

    def target(self) -> HttpTarget | KafkaTarget | DirectTarget:
        """Where to send requests."""

    def trees(self) -> dict[str, Tree]:
        """Its processes by name, each with its descendants."""

    def runs(self) -> tuple[float, float] | None:
        """Rows that it has run so far and in how many runs of the model, if it can tell."""
