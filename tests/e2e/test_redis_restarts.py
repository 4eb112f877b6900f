"""Redis that is restarted under a worker and a gateway: used again at once, by connections that it knows nothing of and
with scripts that it has never seen, and no answer is lost."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter

import numpy as np
import onnxruntime
import pytest
from redis import Redis

from shared import replies
from shared.errors import RepliesUnavailable
from shared.replies import Claim
from shared.tensors import to_numpy
from support import onnx_models
from support.front_door import body
from support.local import local_stack
from support.ports import free_port
from support.small_stack import small_stack
from support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.chaos]
MODEL = onnx_models.linear()
BACK_S = 3.0
"""How long after Redis is back the first answer may come: clients try again every second or two."""
RESTARTS = 3
CALLERS = 8


@pytest.fixture
def own_redis(backbone, tmp_path, monkeypatch):
    """A server of its own: others would not like it killed."""
    monkeypatch.delenv("AIAAS_REDIS_URL", raising=False)
    with local_stack(tmp_path / "servers", kafka_bootstrap_servers=backbone.bootstrap_servers) as running:
        yield running


@pytest.fixture
async def there(backbone, own_redis, tmp_path):
    url = own_redis.environment["AIAAS_REDIS_URL"]
    async with small_stack(backbone, tmp_path, redis_url=url) as stack:
        yield stack


def row(number):
    return {"x": np.random.default_rng(number).standard_normal((1, 4)).astype(np.float32)}


async def restarted(own_redis):
    child = own_redis.child("redis")
    await child.kill()
    await child.wait_ready()
    return time.monotonic()


class Load:
    """Callers who ask all the time, and an upstream system that waits for nobody."""

    def __init__(self, there, model):
        self._there, self._model = there, model
        self._stop = asyncio.Event()
        self.answers = []
        """When each came, what was asked, and the answer."""
        self.sent = []
        """Ids of records; the number of each is the seed of its row."""

    async def __aenter__(self):
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(CALLERS)]
        self._tasks.append(asyncio.create_task(self._produce()))
        return self

    async def __aexit__(self, *_):
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def first_success(self, since_s):
        """How long after `since_s` somebody was answered."""

        def look():
            return [at_s for at_s, _, answer in self.answers if at_s > since_s and answer.status == 200]

        return min(await eventually(look, within_s=30, what="an answer by HTTP after the restart")) - since_s

    async def _call(self, number):
        while not self._stop.is_set():
            answer = await self._there.door.infer(self._model, row(number))
            self.answers.append((time.monotonic(), row(number), answer))
            await asyncio.sleep(0.01 if answer.status == 200 else 0.1)

    async def _produce(self):
        while not self._stop.is_set():
            request_id = f"u{len(self.sent)}"
            await self._there.door.send(self._model, body(row(len(self.sent))), ce_id=request_id)
            self.sent.append(request_id)
            await asyncio.sleep(0.02)


@pytest.mark.alone
async def test_a_restarted_redis_is_used_again_at_once_and_no_answer_is_lost(
    there, own_redis, backbone, record_property
):
    """Callers are answered right, or told 503. Records that nobody waits for are all answered, and stay so."""
    name = backbone.model()
    await there.serve(name, MODEL)
    session = onnxruntime.InferenceSession(MODEL.content)
    waits_s = []
    async with Load(there, name) as load:
        for _ in range(RESTARTS):
            await asyncio.sleep(1.5)
            waits_s.append(await load.first_success(await restarted(own_redis)))
        await asyncio.sleep(1.5)

    def is_right(output, inputs):
        return np.allclose(to_numpy(output), session.run(None, inputs)[0], rtol=1e-4, atol=1e-5)

    told = Counter(answer.status for _, _, answer in load.answers)
    assert set(told) <= {200, 503}, told
    assert all(is_right(answer.outputs[0], asked) for _, asked, answer in load.answers if answer.status == 200)
    outcomes = there.door.outcomes()

    async def settled():
        await asyncio.to_thread(outcomes.poll)
        missing = [request_id for request_id in load.sent if (name, request_id) not in outcomes.by_id]
        assert not missing, missing[:5]
        return True

    await eventually(settled, within_s=30, what="an outcome of every record")
    assert {outcomes.by_id[name, request_id][0].status for request_id in load.sent} == {"succeeded"}
    kept = await there.rig.replies.get([(name, request_id) for request_id in load.sent])
    assert all(result is not None and is_right(result.outputs[0], row(n)) for n, result in enumerate(kept))
    assert max(waits_s) < BACK_S, waits_s
    record_property("back_after_ms", str([round(wait_s * 1000) for wait_s in waits_s]))
    record_property("answers", str(dict(told)))


async def test_kept_connections_and_known_scripts_do_not_outlive_a_restart(own_redis, backbone):
    """The very first script after a restart works: idle connections are dead then, and the script cache is empty."""
    name = backbone.model()
    async with replies.connect(backbone.settings(redis_url=own_redis.environment["AIAAS_REDIS_URL"])) as there:

        async def claim(number):
            mine = Claim("t", 0, number, None, "ab")
            return await there.claim(name, f"c{number}", mine) == mine

        assert all(await asyncio.gather(*map(claim, range(100))))
        for restart in range(2):
            await restarted(own_redis)
            first = range(1000 * (restart + 1), 1000 * (restart + 1) + 20)
            assert all(await asyncio.gather(*map(claim, first))), "not even one try is lost"
        await there.ping()  # a burst of scripts has not kept all connections to itself


class Name:
    """A name that can be made to mean another server; who is connected stays where they are."""

    def __init__(self, url):
        self.url = f"redis://127.0.0.1:{free_port()}/0"
        self.means(url)
        self._tasks = set()

    def means(self, url):
        self._host, self._port = _address(url)

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._join, *_address(self.url))
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _join(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        finally:
            for each in (writer, far_writer):
                each.close()


def _address(url):
    host, _, port = url.removeprefix("redis://").partition("/")[0].partition(":")
    return host, int(port)


async def _pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.write_eof()


async def test_connections_to_a_primary_that_is_none_any_more_are_given_up(own_redis, backbone, tmp_path):
    """A failover behind one name: the old primary lives on as a replica, and its connections with it."""
    old = own_redis.environment["AIAAS_REDIS_URL"]
    others = local_stack(tmp_path / "other", kafka_bootstrap_servers=backbone.bootstrap_servers)
    with others as other, Redis.from_url(old) as demoted:
        async with Name(old) as name, replies.connect(backbone.settings(redis_url=name.url)) as there:
            mine = Claim("t", 0, 1, None, "ab")
            await asyncio.gather(*(there.ping() for _ in range(4)), there.claim("m", "f1", mine))
            name.means(other.environment["AIAAS_REDIS_URL"])
            demoted.replicaof("127.0.0.1", free_port())
            refused = 0
            async with asyncio.timeout(10):
                while True:
                    try:
                        await asyncio.gather(*(there.ping() for _ in range(4)))
                        break
                    except RepliesUnavailable:
                        refused += 1
            assert 1 <= refused <= 5, "each connection is refused once"
            assert await there.claim("m", "f2", mine) == mine


@pytest.mark.alone
async def test_a_hung_redis_is_an_error_in_time_and_no_answer_of_then_is_given_to_another(own_redis, backbone):
    """Commands that time out leave their answers on the way: their connections must not be used again."""
    name, child = backbone.model(), own_redis.child("redis")
    settings = backbone.settings(redis_url=own_redis.environment["AIAAS_REDIS_URL"], redis_timeout_s=0.5)
    async with replies.connect(settings) as there:

        async def owner(number):
            return (await there.claim(name, f"h{number}", Claim("t", 0, number, None, "ab"))).offset

        assert await owner(1) == 1
        child.signal(signal.SIGSTOP)
        try:
            began_s = time.monotonic()
            told = await asyncio.gather(*(owner(number) for number in range(2, 50)), return_exceptions=True)
            assert {type(err) for err in told} == {RepliesUnavailable}
            assert time.monotonic() - began_s < 5
        finally:
            child.signal(signal.SIGCONT)
        found = await asyncio.gather(*(owner(number) for number in range(1, 80)))
        assert found == list(range(1, 80))
