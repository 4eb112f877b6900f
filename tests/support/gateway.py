"""A gateway in this process, and the other end of its topics: a registry writer and a worker that echoes.

`Gateway` serves real HTTP on a free port with the real Kafka and Redis. `Worker` answers every request of a model with
its inputs as outputs, or as the request's `behaviour` parameter says: `silent` never answers, `fail` fails, `held`
answers at the end of `Worker.holding`. `make_ready` writes what an optimizer and a worker would have written of an
upload. `a_client_that_leaves` does so once something is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

import httpx
import numpy as np

from shared import kafka, oip, requests, topics
from shared.artifacts import Artifact
from shared.codec import cloud_event_headers, encode_event
from shared.events import MachineClass, Measurements, ModelReady, OptimizationClaimed, VariantReady
from shared.heartbeat_events import Heartbeat, LoadedModel
from shared.replies import Claim, connect
from shared.results import Result
from shared.signature import Signature, TensorSpec
from shared.tensors import DTYPES, from_numpy
from support.waiting import eventually

VARIANT = Artifact(uri="file:///variant", sha256="ab" * 32, byte_size=7)


def example(datatype):
    """Two rows of three elements, as numpy has them."""
    if datatype == "BYTES":
        return np.array([[b"a", b"", b"\xc3\xa9"], [b"d", b"e", b"\x00"]], dtype=object)
    if datatype == "BF16":
        return np.array([[0, 0x3F80, 0x4000], [0x8000, 0x3F00, 0x3FC0]], np.uint16)
    return np.array([[0, 1, 1], [1, 0, 1]], DTYPES[datatype])


def json_input(datatype, rows=None):
    """`example` as an input of a JSON body; with `rows`, that many rows of zeros."""
    if rows is not None:
        zero = "" if datatype == "BYTES" else datatype != "BOOL" and 0
        return {"name": datatype, "datatype": datatype, "shape": [rows, 3], "data": [zero] * (3 * rows)}
    array = example(datatype).reshape(-1)
    data = [element.decode() for element in array] if datatype == "BYTES" else array.tolist()
    if datatype == "BF16":
        data = [0.0, 1.0, 2.0, -0.0, 0.5, 1.5]
    return {"name": datatype, "datatype": datatype, "shape": [2, 3], "data": data}


def echo_signature(*datatypes):
    """A model that gives back what it takes, one tensor of each datatype, named by it."""
    specs = tuple(TensorSpec(name=d, datatype=d, shape=("rows", 3), batch_axis=0) for d in datatypes)
    return Signature(inputs=specs, outputs=specs)


def tensor(datatype):
    return from_numpy(datatype, example(datatype), "BF16" if datatype == "BF16" else None)


class Gateway:
    """`serve()` in a task; `url` is where, `client` an httpx client for it."""

    def __init__(self, settings):
        from services.gateway.app import serve  # noqa: PLC0415 - who tests something else needs no web framework

        self._serve = serve
        self.settings = settings
        self.url = f"http://{settings.gateway_host}:{settings.gateway_port}"
        self.stop = asyncio.Event()
        self.task = None

    async def __aenter__(self):
        self.client = httpx.AsyncClient(base_url=self.url, timeout=60)
        self.task = asyncio.create_task(self._serve(self.settings, self.stop))
        await self._until_listening()
        return self

    async def __aexit__(self, *_):
        await self.client.aclose()
        await self.stopped()

    async def stopped(self):
        """Told to stop; returns when it has."""
        self.stop.set()
        await self.task

    async def ready(self):
        """Wait until readiness says yes."""
        await self.until("/v2/health/ready", lambda response: response.status_code == 200)
        return self

    async def until(self, path, wanted):
        """The answer to GET `path`, once `wanted(response)`."""
        async with asyncio.timeout(30):
            while True:
                response = await self.client.get(path)
                if wanted(response):
                    return response
                await asyncio.sleep(0.05)

    async def _until_listening(self):
        async with asyncio.timeout(30):
            while True:
                if self.task.done():
                    await self.task
                try:
                    await self.client.get("/v2/health/live")
                except httpx.ConnectError:
                    await asyncio.sleep(0.02)
                else:
                    return


class Writer:
    """Writes on the registry's log and on `workers` as optimizer and worker would."""

    def __init__(self, settings, producer):
        self._settings = settings
        self._producer = producer

    async def events(self, *events):
        for event in events:
            await self._send(topics.MODELS, event.model, event)

    async def make_ready(self, model, version, signature):
        about = {"model": model, "version": version, "attempt": 1, "owner": "optimizer/1"}
        measured = Measurements(max_abs_error=0.0, speedup=1.0, byte_size=7, machine="test")
        await self.events(
            OptimizationClaimed(**about),
            VariantReady(
                **about, variant="fp32", artifact=VARIANT, signature=signature, batch_cap=8, measurements=measured
            ),
            ModelReady(**about, variant="fp32", reason="the only one"),
        )

    async def heartbeat(self, *models, interval_s=60.0, positions=None, registry_offset=0):
        loaded = tuple(
            LoadedModel(model=model, version=version, variant="fp32", artifact_sha256=VARIANT.sha256, byte_size=7)
            for model, version in models
        )
        beat = Heartbeat(
            instance="worker-1",
            incarnation="1",
            service="worker",
            machine=MachineClass(isa="test"),
            loaded=loaded,
            registry_offset=registry_offset,
            positions=positions or {},
            interval_s=interval_s,
        )
        await self._send(topics.WORKERS, beat.instance, beat)

    async def statistics(self, event):
        """What the monitor would publish of a version."""
        await self._send(topics.STATISTICS, f"{event.model}/{event.version}", event)

    async def _send(self, topic, key, event):
        await self._producer.send_and_wait(
            self._settings.topics.name(topic),
            encode_event(event),
            key=key.encode(),
            headers=cloud_event_headers(event_type=type(event).__name__, source="test"),
        )


class Worker:
    """Takes one model's requests. `records` are all it saw: `(headers, request)`; `answered` those it answered.

    As a worker does, it runs the first record of an id and no other.
    """

    def __init__(self, model, consumer, replies):
        self._model = model
        self._consumer = consumer
        self._replies = replies
        self._later = set()
        self._let_go = asyncio.Event()
        self._let_go.set()
        self.records = []
        self.value_bytes = []
        self.answered = []

    @contextlib.contextmanager
    def holding(self):
        """What is `held` has no answer in this block, and has it after that."""
        self._let_go.clear()
        try:
            yield
        finally:
            self._let_go.set()

    async def record_of(self, own_id):
        """The `(headers, request)` of the request that has this `id` in its body, as soon as it is seen."""

        def found():
            return next((seen for seen in self.records if seen[1].id == own_id), None)

        return await eventually(found, within_s=30, what=f"the record of {own_id}")

    async def run(self):
        while True:
            fetched = await self._consumer.getmany(timeout_ms=200)
            for records in fetched.values():
                for record in records:
                    headers = requests.from_kafka(record.headers)
                    request = oip.decode_request(headers.content_type, record.value, headers.header_length)
                    self.records.append((headers, request))
                    self.value_bytes.append(len(record.value))
                    task = asyncio.create_task(self._answer(headers, request, claim_of(record, headers)))
                    self._later.add(task)
                    task.add_done_callback(self._later.discard)

    async def _answer(self, headers, request, claim):
        behaviour = request.parameters.get("behaviour", "echo")
        if behaviour == "silent":
            return
        if not (await self._replies.claim(self._model, headers.request_id, claim)).same_record(claim):
            return
        self.answered.append(headers.request_id)
        if behaviour == "held":
            await self._let_go.wait()
        await self._replies.put([self._result(headers, request, behaviour)], [headers.reply_channel])

    def _result(self, headers, request, behaviour):
        about = {"id": headers.request_id, "model_name": self._model, "model_version": headers.model_version or 1}
        if behaviour == "fail":
            return Result(**about, status="failed", error={"code": "execution_failed", "message": "the model raised"})
        names = [output.name for output in request.outputs] or [tensor.name for tensor in request.inputs]
        given = {tensor.name: tensor for tensor in request.inputs}
        return Result(**about, status="succeeded", outputs=tuple(given[name] for name in names))


def claim_of(record, headers):
    """The claim that a worker makes for a record."""
    digest = hashlib.sha256(record.value).hexdigest()
    return Claim(record.topic, record.partition, record.offset, headers.tenant, digest)


async def a_client_that_leaves(url, ask, seen):
    """Have a client `ask`, and close its connection once `seen` is there, before an answer; returns what was seen."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        asking = asyncio.create_task(ask(client))
        try:
            found = await seen
        finally:
            asking.cancel()
            await asyncio.wait([asking])
    assert asking.cancelled(), f"it was answered before it left: {asking}"
    return found


@contextlib.asynccontextmanager
async def writer(settings):
    async with kafka.started(lambda: kafka.producer(settings), "test writer") as producer:
        yield Writer(settings, producer)


@contextlib.asynccontextmanager
async def worker(settings, model, kind=Worker):
    """A worker on the model's two topics, which must be there."""
    urgent_too = [settings.topics.requests(model, high=high) for high in (False, True)]
    async with (
        kafka.started(lambda: kafka.consumer(settings, *urgent_too), "test worker") as consumer,
        connect(settings) as replies,
    ):
        worker = kind(model, consumer, replies)
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
