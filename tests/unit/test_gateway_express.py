"""The express lane on its connections: what arrives how, what is answered in which order, who leaves, and how it ends.

Both lanes are held against each other in `test_gateway_lanes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import socket
import ssl
import uuid
from itertools import pairwise

import orjson
import pytest
from structlog.testing import capture_logs

from services.gateway import express_connection, http_server, turnstile
from services.gateway.express import Inference, _new_id
from shared.events import MachineClass
from shared.heartbeat_events import Heartbeat
from shared.tensors import Tensor
from support.certificates import Certificates
from support.lone_gateway import LoneGateway, body, chunked, post, silent
from support.waiting import eventually

LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def patient(monkeypatch):
    """A body that is on its way is waited for as long as a test takes."""
    monkeypatch.setattr(express_connection, "_MOMENT_S", 60)


def named(name, **parameters):
    return body(id=name, parameters=parameters)


def lines_of(logged):
    return [line for line in logged if line["event"] == "inference"]


async def held_in_part(gateway):
    """Wait until a body is waited for."""
    await eventually(lambda: any(connection._waiting for connection in gateway.connections))


# ------------------------------------------------------------------ bodies in pieces


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("cuts", [[-20], [-30, -20], [-40, -30, -20], [-83, -1]], ids=str)
async def test_a_body_in_a_few_pieces(tmp_path, cuts):
    whole = post(body(parameters={"note": "n" * 30}))
    edges = [0, *(len(whole) + cut for cut in cuts), len(whole)]
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        for _ in range(2):
            answer = await line.ask(*(whole[a:b] for a, b in pairwise(edges)))
            assert answer.status == 200
        assert not gateway.usual
        await gateway.let_go()


@pytest.mark.usefixtures("patient")
async def test_a_body_in_many_pieces_goes_the_usual_way(tmp_path):
    content = body(parameters={"note": "n" * 30})
    whole = post(content)
    head = len(whole) - len(content)
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        for _ in range(2):
            answer = await line.ask(whole[:head], *(whole[at : at + 9] for at in range(head, len(whole), 9)))
            assert answer.status == 200
        assert len(gateway.usual) == 2
        assert (await line.ask(whole)).status == 200
        assert len(gateway.usual) == 2


async def test_a_head_in_pieces_goes_the_usual_way(tmp_path):
    whole = post(body())
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        for cut in (1, 30, whole.index(b"\r\n\r\n") + 2):
            assert (await line.ask(whole[:cut], whole[cut:])).status == 200
        assert len(gateway.usual) == 3


async def test_a_body_that_comes_late_goes_the_usual_way(tmp_path, monkeypatch):
    monkeypatch.setattr(express_connection, "_MOMENT_S", 0.01)
    whole = post(body())
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        await line.send(whole[:-5])
        await eventually(lambda: gateway.usual)
        assert (await line.ask(whole[-5:])).status == 200
        assert (await line.ask(whole)).status == 200
        assert len(gateway.usual) == 1


@pytest.mark.parametrize("came", [b"", b'{"inp'])
async def test_a_body_that_never_comes_is_408(tmp_path, came):
    async with LoneGateway(tmp_path, stall_timeout_s=0.2) as gateway, gateway.line() as line:
        answer = await line.ask(post(came, length=100))
        assert (answer.status, answer.json["code"]) == (408, "stalled")
        assert f"after {len(came)} bytes" in answer.json["error"]
        await gateway.let_go()


@pytest.mark.usefixtures("patient")
async def test_a_client_that_leaves_amid_its_body(tmp_path):
    async with LoneGateway(tmp_path) as gateway:
        async with gateway.line() as line:
            await line.send(post(body())[:-5])
            await held_in_part(gateway)
        await eventually(lambda: not gateway.connections)
        await gateway.let_go()
        assert not gateway.log.records


@pytest.mark.usefixtures("patient")
async def test_the_rest_of_a_body_is_never_taken_for_a_request(tmp_path):
    """What is held of a request goes before what comes, also when the connection has become one too many meanwhile."""
    async with LoneGateway(tmp_path, max_connections=1) as gateway, gateway.line() as line:
        whole = post(body())
        await line.send(whole[:-5])
        await held_in_part(gateway)
        async with gateway.line():
            await eventually(lambda: len(gateway.connections) == 2)
            answer = await line.ask(whole[-5:])
            assert (answer.status, answer.headers["content-type"]) == (503, "application/json")  # 400 if it were
            assert await line.closed()
        assert not gateway.usual


# ------------------------------------------------------------------ several requests on a connection


@pytest.mark.parametrize("express_first", [True, False])
async def test_what_comes_behind_a_request_is_answered_behind_it(tmp_path, express_first):
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        path = "infer" if express_first else "infer?x"
        await line.send(post(named("0", behaviour="silent"), path=path))
        first = await gateway.record()
        rest = post(named("1")) + post(named("2"), path="infer?x") + chunked(named("3")) + post(named("4")) + LIVE
        await line.send(rest[:-7])
        await asyncio.sleep(0.05)
        assert len(gateway.log.records) == 1
        await gateway.answer(first)
        assert [(await line.answer()).json["id"] for _ in range(5)] == ["0", "1", "2", "3", "4"]
        assert (await line.ask(rest[-7:])).json == {"live": True}
        assert (await line.ask(post(named("5")))).json["id"] == "5"
        await gateway.let_go()


async def test_what_comes_together_is_answered_in_order(tmp_path):
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        await line.send(b"".join(post(named(str(n))) for n in range(5)) + LIVE)
        assert [(await line.answer()).json["id"] for _ in range(5)] == ["0", "1", "2", "3", "4"]
        assert (await line.answer()).json == {"live": True}


async def test_a_request_behind_one_whose_answer_is_handed_over(tmp_path):
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        rows = [[0.0] * 3] * 1000
        large = body(*rows, id="large", parameters={"behaviour": "silent"})
        await line.send(post(large, "accept-encoding: gzip"))
        record = await gateway.record()
        await line.send(post(named("small")) + LIVE)
        await asyncio.sleep(0.05)
        await gateway.answer(record)
        first = await line.answer()
        assert (first.headers["content-encoding"], first.id) == ("gzip", record.id)
        assert (await line.answer()).json["id"] == "small"
        assert (await line.answer()).json == {"live": True}
        await gateway.let_go()


async def test_connection_close_is_the_end(tmp_path):
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        assert (await line.ask(post(body()))).status == 200
        last = await line.ask(post(body(), "connection: close"))
        assert (last.status, last.headers["connection"]) == (200, "close")
        assert await line.closed()
        assert len(gateway.usual) == 1


async def test_errors_keep_the_connection(tmp_path):
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        statuses = [(await line.ask(post(content))).status for content in (b"{", body(), b"[]", body())]
        assert statuses == [400, 200, 400, 200]
        assert not gateway.usual


async def test_what_no_live_worker_has_the_engine_for_is_refused_before_anybody_waits(tmp_path):
    def worker(**engines):
        machine = MachineClass(isa="x", engines=engines)
        about = {"service": "worker", "loaded": (), "registry_offset": 0, "interval_s": 2}
        return Heartbeat(instance="w", incarnation="1", machine=machine, **about)

    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        gateway.beats.append(worker(onnxruntime="1"))
        refused = await line.ask(post(body(), model="program"))
        assert (refused.status, len(gateway.log.records)) == (503, 0)
        assert "needs the engine 'torch', which no live worker has" in refused.json["error"]
        gateway.beats.append(worker(onnxruntime="1", torch="2"))
        assert (await line.ask(post(body(), model="program"))).status == 200
        assert not gateway.usual


async def test_refusals_and_answers_take_turns_in_order(tmp_path):
    async with LoneGateway(tmp_path, max_in_flight_per_model=1) as gateway, gateway.line() as line:
        async with gateway.line() as other:
            await other.send(post(silent()))
            await gateway.record()
            texts = post(body(["a", "b", "c"], datatype="BYTES"), model="texts")
            for _ in range(4):
                await line.send(post(body()))
            for _ in range(2):
                await line.send(texts, post(body()))
            statuses = [(await line.answer()).status for _ in range(8)]
            assert statuses == [503, 503, 503, 503, 200, 503, 200, 503]
            urgent = post(body(parameters={"priority": 1}))
            assert (await line.ask(urgent)).status == 503  # one place is not enough to keep one for each lane
        await gateway.let_go()
        assert (await line.ask(post(body()))).status == 200


# ------------------------------------------------------------------ keep-alive


async def test_a_quiet_connection_is_closed_and_a_busy_one_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(http_server, "_KEEP_ALIVE_S", 0.2)
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        assert (await line.ask(post(body()))).status == 200
        await line.send(post(silent()))
        record = await gateway.record(1)
        await asyncio.sleep(0.5)  # the time itself is what is tested: longer than quiet is borne
        await gateway.answer(record)
        assert (await line.answer()).status == 200
        assert await line.closed()
        assert not gateway.connections


@pytest.mark.usefixtures("patient")
async def test_a_body_that_is_waited_for_is_not_quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(http_server, "_KEEP_ALIVE_S", 0.2)
    whole = post(body())
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        assert (await line.ask(whole)).status == 200
        await line.send(whole[:-5])
        await asyncio.sleep(0.5)  # as above
        assert (await line.ask(whole[-5:])).status == 200


async def test_a_long_answer_behind_a_refusal_is_not_quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(http_server, "_KEEP_ALIVE_S", 0.2)
    full = LoneGateway(tmp_path, max_in_flight_per_model=1)
    async with full as gateway, gateway.line() as line, gateway.line() as other:
        await other.send(post(silent()))
        await gateway.record()
        assert (await line.ask(post(body()))).status == 503
        assert (await line.ask(post(body()))).status == 503
        slow = body(["a", "b", "c"], datatype="BYTES", parameters={"behaviour": "silent"})
        assert (await line.ask(post(body()) + post(slow, model="texts"))).status == 503
        record = await gateway.record(1)
        await asyncio.sleep(0.5)  # as above
        await gateway.answer(record)
        assert (await line.answer()).status == 200


# ------------------------------------------------------------------ clients that leave


@pytest.mark.parametrize("acknowledged", [True, False])
async def test_a_client_that_leaves_finds_its_outcome_by_its_id(tmp_path, acknowledged):
    async with LoneGateway(tmp_path) as gateway:
        gateway.log.acknowledges = acknowledged
        with capture_logs() as logged:
            async with gateway.line() as line:
                await line.send(post(silent()))
                record = await gateway.record()
            await eventually(lambda: lines_of(logged))
        [told] = lines_of(logged)
        assert (told["status"], told["code"], told["request_id"]) == (499, "client_gone", record.id)
        assert gateway.gateway.answered == {499: 1}
        if not acknowledged:
            assert gateway.state(record.id) == (False, None)
            gateway.log.acknowledge(record)
        await gateway.let_go()
        assert gateway.state(record.id) == (True, None)
        await gateway.answer(record)
        assert gateway.state(record.id) == (True, "succeeded")
        assert gateway.gateway.answered == {499: 1}


async def test_a_client_that_leaves_when_its_answer_comes_is_logged_once(tmp_path):
    """Also where the answer would have been made by the application."""
    async with LoneGateway(tmp_path) as gateway:
        with capture_logs() as logged:
            async with gateway.line() as line:
                await line.send(post(silent(), "accept-encoding: identity;q=0, gzip"))
                record = await gateway.record()
                [connection] = gateway.connections
                connection.transport.close()  # as when its end was read; that is told in a later turn of the loop
                [waiter] = gateway.gateway._waits
                await gateway.answer(record)
                waiter.set_result((await gateway.replies.get([("m", record.id)]))[0])
                await gateway.let_go()
            await eventually(lambda: lines_of(logged))
        assert [line["status"] for line in lines_of(logged)] == [499]
        assert not gateway.usual


async def test_the_line_of_an_answer_that_is_handed_over_tells_of_the_whole_request(tmp_path):
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        with capture_logs() as logged:
            await line.send(post(silent(), "accept-encoding: identity;q=0, gzip"))
            record = await gateway.record()
            await asyncio.sleep(0.1)
            await gateway.answer(record)
            assert (await line.answer()).id == record.id
            await eventually(lambda: lines_of(logged))
        assert lines_of(logged)[0]["duration_ms"] >= 100


def test_ids_are_random_uuids():
    ids = {_new_id() for _ in range(1000)}
    assert len(ids) == 1000
    for each in ids:
        assert (str(uuid.UUID(each)), uuid.UUID(each).version, uuid.UUID(each).variant) == (each, 4, uuid.RFC_4122)


async def test_append_failures_free_the_place(tmp_path):
    async with LoneGateway(tmp_path, max_in_flight_per_model=1) as gateway, gateway.line() as line:
        gateway.log.fails = True
        for _ in range(3):
            answer = await line.ask(post(body()))
            assert (answer.status, answer.json["code"], answer.headers["retry-after"]) == (503, "log_unavailable", "1")
            await gateway.let_go()
        gateway.log.fails = False
        assert (await line.ask(post(body()))).status == 200
        assert not gateway.usual


# ------------------------------------------------------------------ deadlines


async def test_the_deadline_is_504_and_the_only_outcome(tmp_path):
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        answer = await line.ask(post(silent(timeout=50_000)))
        assert (answer.status, answer.json["code"]) == (504, "deadline_exceeded")
        await gateway.let_go()
        [record] = gateway.log.records
        assert (answer.id, gateway.state(record.id)) == (record.id, (True, "expired"))
        await gateway.answer(record)  # too late
        assert gateway.state(record.id) == (True, "expired")
        assert gateway.gateway.answered == {504: 1}


async def test_an_answer_that_came_first_counts_at_the_deadline(tmp_path):
    """It lies in Redis, and its announcement was lost."""
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        gateway.log.acknowledges = False  # until then nobody offers that it has expired
        await line.send(post(silent(timeout=300_000)))
        record = await gateway.record()
        await gateway.answer(record, announced=False)
        gateway.log.acknowledge(record)
        assert (await line.answer()).status == 200
        await gateway.let_go()


@pytest.mark.parametrize(("acknowledged", "status", "code"), [(True, 504, None), (False, 503, "log_unavailable")])
async def test_the_deadline_before_the_acknowledgement(tmp_path, acknowledged, status, code):
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        gateway.log.acknowledges = False
        await line.send(post(silent(timeout=20_000)))
        record = await gateway.record()
        await eventually(lambda: gateway.express._tasks)
        (gateway.log.acknowledge if acknowledged else gateway.log.refuse)(record)
        answer = await line.answer()
        assert (answer.status, answer.json["code"]) == (status, code or "deadline_exceeded")
        await gateway.let_go()
        assert gateway.state(record.id) == ((True, "expired") if acknowledged else (False, None))


async def test_a_bug_at_the_deadline_is_a_500(tmp_path, monkeypatch):
    async def fail(*_):
        raise ZeroDivisionError("a bug")

    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        monkeypatch.setattr("services.gateway.infer.expire", fail)
        answer = await line.ask(post(silent(timeout=20_000)))
        assert (answer.status, answer.json["code"]) == (500, "internal")
        await gateway.let_go()


# ------------------------------------------------------------------ stopping


async def test_draining_answers_and_then_closes(tmp_path):
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line, gateway.line() as idle:
        assert (await idle.ask(post(body()))).status == 200
        await line.send(post(silent()))
        record = await gateway.record(1)
        stopping = asyncio.create_task(gateway.stopped())
        assert await idle.closed()
        await gateway.answer(record)
        answer = await line.answer()
        assert (answer.status, answer.headers["connection"], answer.id) == (200, "close", record.id)
        assert await line.closed()
        await stopping
        await gateway.let_go()


async def test_draining_closes_after_an_answer_that_is_handed_over(tmp_path):
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        await line.send(post(silent(), "accept-encoding: identity;q=0, gzip"))
        record = await gateway.record()
        stopping = asyncio.create_task(gateway.stopped())
        await eventually(lambda: all(connection._closes for connection in gateway.connections))
        await gateway.answer(record)
        answer = await line.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await line.closed()
        await stopping


@pytest.mark.usefixtures("patient")
async def test_what_arrives_in_part_is_answered_before_the_end(tmp_path):
    whole = post(body())
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        await line.send(whole[:-5])
        await held_in_part(gateway)
        stopping = asyncio.create_task(gateway.stopped())
        await eventually(lambda: gateway.usual)
        answer = await line.ask(whole[-5:])
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await line.closed()
        await stopping


async def test_a_refusal_that_is_due_is_sent_before_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(turnstile, "_STEP_S", 60)
    monkeypatch.setattr(turnstile, "_LONGEST_S", 60)
    full = LoneGateway(tmp_path, max_in_flight_per_model=1, drain_timeout_s=0.2)
    async with full as gateway, gateway.line() as line, gateway.line() as other:
        await other.send(post(silent()))
        await gateway.record()
        for _ in range(2):
            assert (await line.ask(post(body()))).status == 503
        await line.send(post(body()))
        await eventually(lambda: any(connection._due for connection in gateway.connections))
        stopping = asyncio.create_task(gateway.stopped())
        assert (await line.answer()).json["code"] == "overloaded"
        assert await line.closed()
        assert (await other.answer()).json["code"] == "stopping"
        await stopping


async def test_the_end_of_the_drain_is_told_and_the_request_is_known(tmp_path):
    async with LoneGateway(tmp_path, drain_timeout_s=0.2) as gateway, gateway.line() as line:
        await line.send(post(silent()))
        record = await gateway.record()
        stopping = asyncio.create_task(gateway.stopped())
        answer = await line.answer()
        assert (answer.status, answer.json["code"], answer.headers["connection"]) == (503, "stopping", "close")
        assert await line.closed()
        await stopping
        await gateway.let_go()
        assert gateway.state(record.id) == (True, None)


# ------------------------------------------------------------------ clients that take nothing

LARGE = 24 * 1024 * 1024


def sized(size_bytes):
    return {"outputs": (Tensor("FP32", "FP32", (size_bytes // 12, 3), bytes(size_bytes)),)}


@contextlib.asynccontextmanager
async def slow_line(gateway):
    """A connection on which little waits to be read."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", gateway.settings.gateway_port))
        yield sock


LANES = pytest.mark.parametrize("path", ["infer", "infer?usual"])


@LANES
async def test_a_client_that_takes_nothing_is_cut_off_and_hurts_nobody(tmp_path, path):
    async with LoneGateway(tmp_path, stall_timeout_s=0.3) as gateway:
        gateway.answer_with["large"] = sized(LARGE)
        asked = post(body(parameters={"behaviour": "large", "binary_data_output": True}), path=path)
        async with slow_line(gateway) as sock, gateway.line() as other:
            await asyncio.get_running_loop().sock_sendall(sock, asked)
            await eventually(lambda: any(connection.flow.write_paused for connection in gateway.connections))
            assert (await other.ask(post(body()))).status == 200
            await eventually(lambda: len(gateway.connections) == 1)
            assert (await other.ask(post(body()))).status == 200
        await gateway.let_go()
        assert gateway.gateway.answered[200] == 3


@LANES
async def test_a_client_that_takes_its_time_gets_all(tmp_path, path):
    async with LoneGateway(tmp_path, stall_timeout_s=1) as gateway:
        gateway.answer_with["large"] = sized(LARGE)
        asked = post(body(parameters={"behaviour": "large", "binary_data_output": True}), path=path)
        async with slow_line(gateway) as sock:
            loop, got_bytes, began_s = asyncio.get_running_loop(), 0, asyncio.get_running_loop().time()
            await loop.sock_sendall(sock, asked)
            while got_bytes < LARGE and (piece := await loop.sock_recv(sock, 1024 * 1024)):
                got_bytes += len(piece)
                ahead_s = 2 * got_bytes / LARGE - (loop.time() - began_s)
                await asyncio.sleep(max(0, ahead_s))  # all of it takes twice as long as taking nothing may
            assert got_bytes >= LARGE
        await gateway.let_go()


async def test_who_asks_on_without_taking_answers_is_cut_off(tmp_path):
    async with LoneGateway(tmp_path, stall_timeout_s=0.3) as gateway:
        gateway.answer_with["large"] = sized(LARGE)
        asked = post(body(parameters={"behaviour": "large", "binary_data_output": True}))
        async with slow_line(gateway) as sock:
            for _ in range(3):
                await asyncio.get_running_loop().sock_sendall(sock, asked)
            await eventually(lambda: gateway.log.records)
            await eventually(lambda: not gateway.connections)
        await gateway.let_go()


# ------------------------------------------------------------------ over TLS


@pytest.fixture
def tls(tmp_path):
    """Settings of a server, and what its clients need."""
    certificates = Certificates(tmp_path)
    certificate, key = certificates.issue("gateway")
    trusted = ssl.create_default_context(cafile=certificates.authority)
    return {"gateway_tls_certfile": certificate, "gateway_tls_keyfile": key}, {"ssl": trusted}


@pytest.mark.usefixtures("patient")
async def test_over_tls_it_is_the_same(tmp_path, tls):
    settings, how = tls
    whole = post(named("1"))
    async with LoneGateway(tmp_path, **settings) as gateway:
        async with gateway.line(**how) as line:
            assert (await line.ask(whole)).status == 200
            assert (await line.ask(whole[:-5], whole[-5:])).status == 200
            assert not gateway.usual
            await line.send(post(named("0", behaviour="silent")))
            record = await gateway.record(2)
            await line.send(whole, post(named("2")) + LIVE)
            await gateway.answer(record)
            assert [(await line.answer()).json["id"] for _ in range(3)] == ["0", "1", "2"]
            assert (await line.answer()).json == {"live": True}
            await line.send(post(silent()))
            record = await gateway.record(5)
        await gateway.let_go()
        assert gateway.state(record.id) == (True, None)


async def test_over_tls_a_client_that_takes_nothing_is_cut_off_quietly(tmp_path, tls):
    settings, how = tls
    failed = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    async with LoneGateway(tmp_path, stall_timeout_s=0.3, **settings) as gateway:
        gateway.answer_with["large"] = sized(LARGE)
        asked = post(body(parameters={"behaviour": "large", "binary_data_output": True}))
        async with gateway.line(**how, limit=1000) as line:
            for _ in range(3):
                await line.send(asked)
            await eventually(lambda: gateway.log.records)
            await eventually(lambda: not gateway.connections)
        await gateway.let_go()
    assert not failed


# ------------------------------------------------------------------ nothing is left


async def test_one_too_many_meanwhile_still_gets_its_answer(tmp_path):
    async with LoneGateway(tmp_path, max_connections=1) as gateway, gateway.line() as line:
        await line.send(post(silent(), "accept-encoding: identity;q=0, gzip"))
        record = await gateway.record()
        async with gateway.line():
            await eventually(lambda: len(gateway.connections) == 2)
            await gateway.answer(record)
            answer = await line.answer()
        assert (answer.status, answer.id) == (200, record.id)


async def test_requests_are_freed_without_the_collector(tmp_path):
    async with LoneGateway(tmp_path) as gateway, gateway.line() as line:
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                assert (await line.ask(post(body()))).status == 200
            await eventually(lambda: not gateway._tasks)
            gateway.log.records.clear()  # who waited for the acknowledgement is in these
            assert not [each for each in gc.get_objects() if issubclass(type(each), Inference)]
        finally:
            gc.enable()


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_clients_do_everything_is_given_back(tmp_path, seed):
    """A crowd of clients: patient ones, leaving ones, some that ask for nonsense, on a log that fails now and then."""
    with capture_logs():  # printing a traceback takes the loop longer than a request does
        await storm(tmp_path, random.Random(seed))


async def storm(tmp_path, chance):
    async with LoneGateway(tmp_path, max_in_flight_per_model=8) as gateway:
        gateway.answer_with["fail"] = {"outputs": (), "status": "failed"}
        gateway.answer_with["nonsense"] = {"outputs": (Tensor("FP32", "FP32", (1, 3), b"1"),)}

        async def client():
            async with gateway.line() as line:
                for _ in range(chance.randrange(1, 8)):
                    behaviour = chance.choice(["echo", "fail", "nonsense", "silent", "silent"])
                    timeout_us = chance.randrange(1_000, 60_000)
                    content = body(parameters={"behaviour": behaviour, "timeout": timeout_us})
                    headers = chance.choice([[], ["accept-encoding: identity;q=0, gzip"], ["prefer: wait=1"]])
                    asked = post(content if chance.random() < 0.9 else b"{}", *headers)
                    cut = chance.choice([0, 0, len(asked) - 3, 20])
                    await line.send(*([asked] if not cut else [asked[:cut], asked[cut:]]))
                    gateway.log.fails = chance.random() < 0.1
                    if chance.random() < 0.2:
                        return
                    answer = await line.answer()
                    assert answer.status in {200, 400, 500, 503, 504}
                    if answer.status == 200:
                        assert orjson.loads(content)["parameters"]["behaviour"] == "echo"

        await asyncio.gather(*(client() for _ in range(40)))
        await gateway.let_go()
        await eventually(lambda: not gateway.connections)
        assert gateway.usual
        for record in gateway.log.records:
            _, outcome = gateway.state(record.id)
            assert outcome in {None, "succeeded", "failed", "expired"}
