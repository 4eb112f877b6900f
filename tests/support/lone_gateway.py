"""A gateway without Kafka and Redis: real HTTP over the real application, and a log and replies that the test plays.

`LoneGateway` serves on a free port. What is appended is in `log.records`; it is acknowledged at once, unless the test
wants otherwise, and answered by echo, unless its `behaviour` parameter is `silent`. `usual` are the paths of the
requests that went through the application: all others were answered in the express lane. `Line` is one connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace

import orjson

from services.gateway import http_server
from services.gateway.api import application
from services.gateway.express import Express
from services.gateway.gateway import Backbone, Gateway
from services.gateway.request_log import Written
from services.gateway.settings import GatewaySettings
from shared import oip, requests
from shared.artifacts import ArtifactStore
from shared.errors import LogUnavailable
from shared.events import Measurements, ModelReady, OptimizationClaimed, VariantReady
from shared.reply_waiter import ReplyWaiter
from shared.results import Result
from shared.tensors import Tensor

from .facts import OWNER, artifact, folded, uploaded
from .fake_replies import FakeReplies
from .gateway import echo_signature
from .ports import free_port
from .waiting import eventually

MODELS = {"m": "FP32", "texts": "BYTES"}
"""Each gives back its one input, and so does `program`, by torch; `young` is known, and not ready."""


def ready(model, signature, **more):
    about = {"model": model, "version": 1, "attempt": 1, "owner": OWNER}
    made = {"signature": signature, "batch_cap": 32, "measurements": Measurements(), **more}
    return [
        uploaded(model, model),
        OptimizationClaimed(**about),
        VariantReady(**about, variant="fp32", artifact=artifact(model), **made),
        ModelReady(**about, variant="fp32", reason="the only one"),
    ]


REGISTRY = folded(
    *(event for model, d in MODELS.items() for event in ready(model, echo_signature(d))),
    *ready("program", echo_signature("FP32"), engine="torch"),
    uploaded("young"),
)


@dataclass
class Record:
    """One that was appended; `written` is who waits for its acknowledgement."""

    topic: str
    value: bytes
    headers: requests.RequestHeaders
    request: oip.InferenceRequest
    written: object

    @property
    def id(self):
        return self.headers.request_id


class Log:
    """Stands in for `RequestLog`. Unless it `acknowledges`, the test does."""

    def __init__(self, take):
        self._take = take
        self.records = []
        self.acknowledges = True
        self.fails = False

    def append(self, topic, _key, value, headers, written):
        read = requests.from_kafka(headers)
        record = Record(topic, value, read, oip.decode_request(read.content_type, value), written)
        self.records.append(record)
        if self.fails:
            asyncio.get_running_loop().call_soon(self.refuse, record)
        elif self.acknowledges:
            asyncio.get_running_loop().call_soon(self.acknowledge, record)

    async def appended(self, topic, key, value, headers):
        written = asyncio.get_running_loop().create_future()
        self.append(topic, key, value, headers, written)
        return await written

    def acknowledge(self, record):
        if not record.written.done():
            record.written.set_result(Written(0, self.records.index(record)))
        self._take(record)

    def refuse(self, record):
        if not record.written.done():
            record.written.set_exception(LogUnavailable("Kafka did not acknowledge the request: a test"))


class LoneGateway:
    """`async with LoneGateway(directory, **settings) as gateway`."""

    def __init__(self, directory, **settings):
        self.store_url = (directory / "store").as_uri()
        of_tests = {"gateway_port": free_port(), "artifact_store_url": self.store_url, "instance": "here"}
        self.settings = GatewaySettings(**{**of_tests, "request_timeout_s": 600, **settings})  # no deadline by surprise
        self.gateway = Gateway(self.settings)
        self.replies = FakeReplies()
        self.log = Log(self._take)
        self.usual = []
        self.beats = []
        """Of the workers that are alive."""
        self.answer_with = {}
        """Fields of the result by a request's `behaviour`."""
        self._tasks = set()

    async def __aenter__(self):
        async with contextlib.AsyncExitStack() as stack:
            self.waiter = await stack.enter_async_context(ReplyWaiter(self.replies, self.settings.instance))
            self.gateway.connected(self._backbone())
            self.express = Express(self.gateway)
            self.server = http_server.server(self._application(), self.settings, self.gateway.door, self.express)
            listener = stack.enter_context(http_server.listen(self.settings))
            self._serving = asyncio.create_task(self.server.serve(sockets=[listener]))
            await eventually(lambda: self.server.started and self.waiter.healthy)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error):
        self.gateway.stopping()
        self.server.should_exit = True
        if not self._serving.done():
            self.gateway.give_up()
        await self._serving
        await self.express.finish()
        await self._stack.__aexit__(*error)

    async def stopped(self):
        """As `app.serve` ends."""
        self.gateway.stopping()
        self.server.should_exit = True
        await asyncio.wait([self._serving], timeout=self.settings.drain_timeout_s)
        self.gateway.give_up()
        await self._serving
        await self.express.finish()

    def _backbone(self):
        return Backbone(
            producer=None,
            requests=self.log,
            log=SimpleNamespace(registry=REGISTRY),
            topics=SimpleNamespace(has=lambda model: model in REGISTRY.models, ensure=_nothing),
            heartbeats=SimpleNamespace(alive=lambda: self.beats),
            statistics=None,
            replies=self.replies,
            waiter=self.waiter,
            watch=SimpleNamespace(stop=lambda: None),
            store=ArtifactStore(self.store_url),
            progress=None,
        )

    def _application(self):
        inner = application(self.gateway)

        async def app(scope, receive, send):
            self.usual.append(scope["path"])
            await inner(scope, receive, send)

        return app

    # ------------------------------------------------------------------ the worker

    def _take(self, record):
        behaviour = record.request.parameters.get("behaviour", "echo")
        if behaviour != "silent":
            self.soon(self.answer(record, **self.answer_with.get(behaviour, {})))

    def soon(self, work):
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def answer(self, record, *, announced=True, **fields):
        """The record's outcome: its inputs, or what `fields` say."""
        model = record.topic.removeprefix(self.settings.topic_prefix).removeprefix("requests.").removesuffix(".high")
        about = {"id": record.id, "model_name": model, "model_version": 1, "status": "succeeded"}
        outputs = tuple(Tensor(t.name, t.datatype, t.shape, bytes(t.data), t.artifact) for t in record.request.inputs)
        result = Result(**{**about, "outputs": outputs, **fields})
        await self.replies.put([result], [self.settings.instance] if announced else [])

    async def record(self, number=0):
        """The record that is appended as this one."""
        return await eventually(lambda: self.log.records[number:] and self.log.records[number])

    # ------------------------------------------------------------------ what is held

    def held(self):
        """All that is held for requests, by its name; empty if that is nothing."""
        gateway, admission = self.gateway, self.gateway.admission
        places = {name: model.limit.in_flight or sum(model._lanes) for name, model in admission._models.items()}
        held = {
            "in flight": gateway.in_flight,
            "waits": len(gateway._waits),
            "pending": len(self.waiter._pending),
            "places": sum(places.values()),
            "body bytes": admission._body_bytes,
            "deadlines": sum(map(len, gateway.deadlines._slots.values())),
            "tasks": len(self.express._tasks),
        }
        return {name: count for name, count in held.items() if count}

    async def let_go(self):
        """Wait until nothing is held."""
        await eventually(lambda: not self.held() or self.fail_with_held(), what="letting go")

    def fail_with_held(self):
        raise AssertionError(f"held: {self.held()}")

    @property
    def connections(self):
        """uvicorn's protocols."""
        return self.server.server_state.connections

    def state(self, request_id, model="m"):
        """Whether its id is known, and its outcome."""
        kept = self.replies
        claim, result = kept._look("claim", model, request_id), kept._look("result", model, request_id)
        return claim is not None, result and Result.decode(result).status

    # ------------------------------------------------------------------ the client

    @contextlib.asynccontextmanager
    async def line(self, **options):
        """A connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.settings.gateway_port, **options)
        try:
            yield Line(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def ask(self, *said):
        """One request on a connection of its own."""
        async with self.line() as line:
            return await line.ask(*said)


async def _nothing(*_):
    pass


@dataclass
class Answer:
    """`headers` by lower-case name; `lines` are their names as they came."""

    status: int
    headers: dict[str, str]
    lines: list[str]
    body: bytes

    @property
    def json(self):
        return orjson.loads(self.body)

    @property
    def id(self):
        return self.headers["x-request-id"]

    @property
    def told(self):
        """All but what differs from one answer to the next."""
        headers = {name: value for name, value in self.headers.items() if name not in {"date", "x-request-id"}}
        return self.status, headers, Counter(self.lines), self.body.replace(self.id.encode(), b"ID")


class Line:
    """One connection's other end."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def send(self, *pieces):
        """Each piece is read by itself, as far as a test can have that."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            if piece is not pieces[-1]:
                await asyncio.sleep(0.01)

    async def ask(self, *pieces):
        await self.send(*pieces)
        return await self.answer()

    async def answer(self, within_s=10):
        async with asyncio.timeout(within_s):
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")[:-2]
            named = [line.split(": ", 1) for line in lines]
            headers = {name.lower(): value for name, value in named}
            body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(int(first.split()[1]), headers, [name for name, _ in named], body)

    async def closed(self, within_s=10):
        """Whether the other end closes, and says nothing more."""
        async with asyncio.timeout(within_s):
            return await self.reader.read() == b""


def body(*rows, datatype="FP32", **fields):
    """A request's body in JSON; by default one row of numbers."""
    data = [element for row in rows or ([1.0, 2.0, 3.0],) for element in row]
    given = {"name": datatype, "datatype": datatype, "shape": [len(data) // 3, 3], "data": data}
    return orjson.dumps({"inputs": [given], **fields})


def silent(**parameters):
    return body(parameters={"behaviour": "silent", **parameters})


def post(content, *headers, model="m", path="infer", length=None):
    """A usual request, as far as its headers are."""
    length = len(content) if length is None else length
    lines = [f"POST /v2/models/{model}/{path} HTTP/1.1", "host: x", f"content-length: {length}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + content


def chunked(content, *headers, model="m", path="infer"):
    """The same request in a way that is not usual."""
    lines = [f"POST /v2/models/{model}/{path} HTTP/1.1", "host: x", "transfer-encoding: chunked", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
