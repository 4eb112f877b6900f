"""The platform as its users see it: HTTP, Kafka, and nothing of its insides.

`FrontDoor` uploads models, asks over HTTP and straight from Kafka, and reads what the platform tells the world: results
by id, outcomes by their public rule, dead letters, the monitor's numbers. The Kafka client is `confluent-kafka`, which
knows only the documented contract.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from shared.tensors import Array, Tensor, from_json, from_numpy, to_json
from shared.topics import DEAD_LETTERS, OUTCOMES, Topics

from .log_readers import At, Log, Outcomes
from .waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping


OK, ACCEPTED = 200, 202
_GATE_S = 90.0
_CONVERSION_S = 240.0
"""On a machine that is busy with other tests."""
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back over HTTP; `status` None if the connection broke before."""

    status: int | None
    id: str | None = None
    version: int | None = None
    outputs: tuple[Tensor, ...] = ()
    error: str | None = None
    code: str | None = None


def body(inputs: Mapping[str, Array], **parameters: Any) -> bytes:
    """An OIP request body in JSON."""
    tensors = [from_numpy(name, array) for name, array in inputs.items()]
    listed = [{"name": t.name, "datatype": t.datatype, "shape": t.shape, "data": to_json(t)} for t in tensors]
    document = {"inputs": listed} | ({"parameters": parameters} if parameters else {})
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def outputs_of(response: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The outputs of an OIP response in JSON, as the bytes that the digest of a receipt covers."""
    return tuple(from_json(o["name"], o["datatype"], tuple(o["shape"]), o["data"]) for o in response["outputs"])


class FrontDoor:
    """Clients of one running stack, whose `environment` says where it is. Build it with `front_door`."""

    def __init__(self, environment: Mapping[str, str], http: httpx.AsyncClient) -> None:
        self.bootstrap_servers = environment["AIAAS_KAFKA_BOOTSTRAP_SERVERS"]
        self.monitor_url = environment["AIAAS_MONITOR_URL"]
        self.topics = Topics(environment.get("AIAAS_TOPIC_PREFIX", "aiaas."))
        self.http = http
        idempotent = environment.get("AIAAS_KAFKA_IDEMPOTENCE", "true")  # the embedded broker can't
        self._producer = Producer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "enable.idempotence": idempotent,
                "linger.ms": 0,
                "log_level": 0,  # it would report every try to reach a broker that the test has killed
            }
        )
        self._open: list[Log] = []

    # ------------------------------------------------------------------ models

    async def upload(self, model: str, content: bytes) -> int:
        """Upload a version; returns its number as soon as the log has it."""
        response = await self.http.post(f"/v2/repository/models/{model}/versions", content=content)
        assert response.status_code == 202, response.text
        return int(response.json()["version"])

    async def serve(self, model: str, content: bytes, within_s: float = _GATE_S) -> int:
        """Upload a version and wait until it is through the gate and a worker holds it; returns its number."""
        version = await self.upload(model, content)
        await self.through_the_gate(model, version, within_s)
        await self.held(model, version)
        return version

    async def through_the_gate(self, model: str, version: int, within_s: float = _GATE_S) -> dict[str, Any]:
        """The version's state, once it is ready."""
        url = f"/v2/repository/models/{model}/versions/{version}"

        async def look() -> dict[str, Any] | None:
            state: dict[str, Any] = (await self.http.get(url)).json()
            if state["state"] == "rejected":
                raise RuntimeError(f"{model} version {version} was rejected: {state}")
            return state if state["state"] == "ready" else None

        state: dict[str, Any] = await eventually(look, within_s=within_s, what=f"{model} version {version} ready")
        return state

    async def held(self, model: str, version: int) -> None:
        """Wait until a worker that lives holds the version. Only the active version is held before it is asked for."""

        async def look() -> bool:
            return (await self.http.get(f"/v2/models/{model}/ready")).status_code == OK

        active = (await self.http.get(f"/v2/repository/models/{model}/versions")).json()["active"]
        if active == version:
            await eventually(look, within_s=_GATE_S, what=f"a worker that holds {model} version {version}")

    async def export(self, model: str, version: int, file_format: str) -> bytes:
        """A version given back in a format."""
        asked = await self.http.post(f"/v2/repository/models/{model}/versions/{version}/export?format={file_format}")
        assert asked.status_code == ACCEPTED, asked.text

        async def look() -> dict[str, Any] | None:
            state: dict[str, Any] = (await self.http.get(asked.json()["status_url"])).json()
            assert state["state"] != "rejected", state
            return state if state["state"] == "ready" else None

        made: dict[str, Any] = await eventually(look, within_s=_CONVERSION_S, what=f"{model} as {file_format}")
        return (await self.http.get(made["file_url"])).content

    async def change(self, model: str, what: str) -> None:
        """`versions/{v}/promote` or `rollback`."""
        response = await self.http.post(f"/v2/repository/models/{model}/{what}")
        assert response.status_code == OK, response.text

    # ------------------------------------------------------------------ requests

    async def infer(
        self, model: str, inputs: Mapping[str, Array], version: int | None = None, **parameters: Any
    ) -> Answer:
        """Ask over HTTP, in JSON, and wait for the answer."""
        path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "")
        try:
            response = await self.http.post(f"{path}/infer", content=body(inputs, **parameters))
        except httpx.TransportError as err:
            return Answer(None, error=repr(err))
        told = response.json()
        request_id = response.headers.get("x-request-id")  # none where it was refused at the door
        if response.status_code != OK:
            return Answer(response.status_code, request_id, error=told["error"], code=told["code"])
        return Answer(OK, request_id, int(told["model_version"]), outputs_of(told))

    async def later(self, model: str, inputs: Mapping[str, Array]) -> str:
        """Ask over HTTP without waiting; returns the id to poll."""
        headers = {"prefer": "respond-async"}
        response = await self.http.post(f"/v2/models/{model}/infer", content=body(inputs), headers=headers)
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    async def send(
        self, model: str, value: bytes, *, key: bytes | None = None, partition: int = -1, **headers: str | bytes
    ) -> At:
        """Produce a request to Kafka; returns where it lies once Kafka has acknowledged it. `_` in names is `-`."""
        loop = asyncio.get_running_loop()
        delivered: asyncio.Future[At] = loop.create_future()

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if error is None:
                at = str(message.topic()), int(message.partition()), int(message.offset())
                loop.call_soon_threadsafe(delivered.set_result, at)
            else:
                loop.call_soon_threadsafe(delivered.set_exception, KafkaException(error))

        named = [(name if name == "ce_id" else name.replace("_", "-"), value) for name, value in headers.items()]
        topic = self.topics.requests(model)
        self._producer.produce(topic, value, key=key, partition=partition, headers=named, on_delivery=on_delivery)
        return await delivered

    async def state(self, model: str, request_id: str) -> dict[str, Any] | None:
        """What the gateway tells of a request, None if it knows none of that id."""
        response = await self.http.get(f"/v2/models/{model}/requests/{request_id}")
        found: dict[str, Any] = response.json()
        return found if response.status_code == OK else None

    async def result(self, model: str, request_id: str, within_s: float = 20.0) -> dict[str, Any]:
        """The state of a request once it has its outcome."""

        async def look() -> dict[str, Any] | None:
            try:
                state = await self.state(model, request_id)
            except httpx.TransportError:
                return None
            return state if state and state["status"] else None

        found: dict[str, Any] = await eventually(look, within_s=within_s, what=f"an outcome of {request_id}")
        return found

    # ------------------------------------------------------------------ what can be read

    def outcomes(self) -> Outcomes:
        """A reader of the outcome log."""
        return Outcomes(self.log(self.topics.name(OUTCOMES)))

    def dead_letters(self) -> Log:
        """A reader of the dead letters."""
        return self.log(self.topics.name(DEAD_LETTERS))

    def log(self, topic: str) -> Log:
        """A reader of a topic; closed with the front door."""
        self._open.append(Log(self.bootstrap_servers, topic))
        return self._open[-1]

    async def create_topic(self, topic: str) -> None:
        """A topic of the caller's own."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        [created] = admin.create_topics([NewTopic(topic, 1, 1)]).values()
        await asyncio.to_thread(created.result, 10)

    async def stats(self) -> dict[str, Any]:
        """The monitor's numbers."""
        found: dict[str, Any] = (await self.http.get(f"{self.monitor_url}/v1/stats")).json()
        return found

    async def metrics(self) -> str:
        """The monitor's numbers, for Prometheus."""
        return (await self.http.get(f"{self.monitor_url}/metrics")).text

    async def serve_deliveries(self) -> None:
        """Let the Kafka client report its deliveries, until cancelled."""
        while True:
            await asyncio.to_thread(self._producer.poll, _POLL_S)

    def close(self) -> None:
        """Close what was opened."""
        for log in self._open:
            log.close()


@asynccontextmanager
async def front_door(environment: Mapping[str, str]) -> AsyncIterator[FrontDoor]:
    """The front door of the stack that `environment` names."""
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=environment["AIAAS_GATEWAY_URL"], timeout=300, limits=limits) as http:
        door = FrontDoor(environment, http)
        deliveries = asyncio.create_task(door.serve_deliveries())
        try:
            yield door
        finally:
            deliveries.cancel()
            await asyncio.gather(deliveries, return_exceptions=True)
            door.close()


def row(seed: int, columns: int = 8) -> dict[str, Array]:
    """One row of input for a model with an input `x`."""
    return {"x": np.random.default_rng(seed).standard_normal((1, columns)).astype(np.float32)}
