"""The local stack with real processes: ready, restarted, stopped in order, and nothing left however it ends."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from services.cli import doctor
from services.cli.checks import examine
from services.cli.local import (
    LocalStack,
    LocalStackError,
    LocalStackSettings,
    RunningStack,
    Service,
    probes,
    stop_stack,
)
from services.cli.local.ports import Ports, is_free
from services.cli.local.processes import Processes
from services.cli.local.supervisor import Backoff, Child, ChildSpec
from shared import kafka, replies
from support.waiting import eventually

REPOSITORY = Path(__file__).parents[2]
DUMMY = (sys.executable, str(REPOSITORY / "tests" / "support" / "dummy_service.py"))
QUICK = Backoff(first_s=0.05, limit_s=0.2, reset_s=60)

UP = """
import asyncio, sys
from services.cli.local import LocalStack, LocalStackSettings, Service, hold
services = [Service("dummy", tuple(sys.argv[1:]), 22100, "DUMMY_PORT")]
asyncio.run(hold(LocalStack(LocalStackSettings(), services, lambda event: print(event, flush=True)), print))
"""


@pytest.fixture(autouse=True)
def _own_servers(monkeypatch):
    for name in ("AIAAS_KAFKA_BOOTSTRAP_SERVERS", "AIAAS_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)


def dummy(**env) -> Service:
    return Service("dummy", DUMMY, 22_100, "DUMMY_PORT", env=env)


@asynccontextmanager
async def supervised(tmp_path, argv=DUMMY, *, stop_timeout_s=5.0, **env):
    """One child without a stack around it, and the events it caused."""
    events = []
    with Ports() as ports, Processes() as processes:
        port = ports.claim(22_000)
        spec = ChildSpec(
            name="dummy",
            argv=argv,
            probe=probes.http(port, "/ready"),
            log_path=tmp_path / "dummy.log",
            env={"DUMMY_PORT": str(port), **env},
            ready_timeout_s=20,
            stop_timeout_s=stop_timeout_s,
            backoff=QUICK,
        )
        child = Child(spec, processes, events.append)
        child.start()
        try:
            yield child, port, events
        finally:
            await child.stop()


def is_gone(pid) -> bool:
    """A zombie is gone: who ends without its parent waits for init to notice."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def pid_in(path) -> int:
    return int(await eventually(lambda: path.exists() and path.read_text()))


# One child


async def test_a_killed_child_comes_back_on_its_port(tmp_path):
    async with supervised(tmp_path) as (child, port, _):
        await child.wait_ready()
        before = child.pid
        await child.kill()
        await child.wait_ready()
        assert child.pid != before
        assert child.restarts == 1
        assert await probes.http(port, "/ready")() is None


async def test_restarts_are_spaced_by_the_back_off(tmp_path):
    async with supervised(tmp_path) as (child, _, events):
        for _ in range(4):
            await child.wait_ready()
            await child.kill()
        await child.wait_ready()
    deaths = [event.message for event in events if event.phase == "died"]
    assert deaths == [f"was killed by SIGKILL; starting it again in {s} s" for s in ("0.05", "0.1", "0.2", "0.2")]


async def test_a_stopped_process_is_left_alone(tmp_path):
    async with supervised(tmp_path) as (child, port, _):
        await child.wait_ready()
        before = child.pid
        child.send_signal(signal.SIGSTOP)
        assert "did not answer" in await probes.http(port, "/ready")()
        child.send_signal(signal.SIGCONT)
        assert await probes.http(port, "/ready")() is None
        assert (child.pid, child.restarts) == (before, 0)


async def test_a_child_that_never_works_fails_with_its_last_lines(tmp_path):
    argv = (sys.executable, "-c", "print('AIAAS_COLOUR=mauve: not a colour'); raise SystemExit(3)")
    async with supervised(tmp_path, argv) as (child, _, _):
        with pytest.raises(LocalStackError) as failed:
            await child.wait_ready()
    assert "exited with 3 3 times" in failed.value.message
    assert "AIAAS_COLOUR=mauve: not a colour" in failed.value.message
    assert failed.value.code == "child_failed"


async def test_a_child_that_is_not_ready_in_time_is_quoted(tmp_path):
    async with supervised(tmp_path, DUMMY_ANSWER="503") as (child, _, _):
        await eventually(lambda: "503" in child._why_not_ready)
        with pytest.raises(LocalStackError, match=r"503 .*waiting_for"):
            await child.wait_ready(timeout_s=0.1)


async def test_stop_lets_a_child_drain(tmp_path):
    async with supervised(tmp_path) as (child, port, _):
        await child.wait_ready()
    assert child.state == "stopped"
    assert "drained" in child.spec.log_path.read_text()
    assert is_free(port)


async def test_stop_wakes_a_stopped_process_so_that_it_can_drain(tmp_path):
    async with supervised(tmp_path) as (child, _, _):
        await child.wait_ready()
        child.send_signal(signal.SIGSTOP)
    assert "drained" in child.spec.log_path.read_text()


async def test_stop_kills_who_does_not_listen(tmp_path):
    async with supervised(tmp_path, stop_timeout_s=0.3, DUMMY_IGNORES_TERM="1") as (child, port, events):
        await child.wait_ready()
        pid = child.pid
    assert is_gone(pid)
    assert is_free(port)
    assert any("did not stop within 0.3 s" in event.message for event in events)


async def test_a_childs_own_children_die_with_it(tmp_path):
    pid_file = tmp_path / "grandchild"
    async with supervised(tmp_path, DUMMY_CHILD_PID=str(pid_file)) as (child, _, _):
        await child.wait_ready()
        grandchild = await pid_in(pid_file)
        await child.kill()
        await eventually(lambda: is_gone(grandchild))


async def test_a_killed_warden_is_replaced(tmp_path):
    async with supervised(tmp_path) as (child, _, _):
        await child.wait_ready()
        first = child._processes._warden
        os.kill(first.pid, signal.SIGKILL)
        await eventually(lambda: is_gone(first.pid))
        await child.kill()
        await child.wait_ready()
        assert child._processes._warden.pid != first.pid
        first.stdin.close()


# A whole stack


@pytest.mark.stack
async def test_ready_means_ready_and_killed_servers_come_back_with_their_data(tmp_path):
    settings = LocalStackSettings(data_dir=tmp_path)
    async with LocalStack(settings, [dummy()]) as stack:
        clients = settings.model_copy(
            update={"kafka_bootstrap_servers": stack.urls["kafka"], "redis_url": stack.urls["redis"]}
        )
        await kafka.ensure_topics(clients)
        where = TopicPartition("aiaas.models", 0)
        async with kafka.started(lambda: AIOKafkaProducer(**kafka.client_options(clients)), "producing") as producer:
            await producer.send_and_wait(where.topic, b"kept")
        cancelled = await _cancel(clients)
        before = stack.environment()

        for name in ("kafka", "redis", "dummy"):
            await stack.child(name).kill()
        for name in ("kafka", "redis", "dummy"):
            await stack.child(name).wait_ready()

        assert stack.environment() == before
        assert await _cancel(clients) == cancelled
        if RunningStack.find(tmp_path).kafka.startswith("Apache"):
            async with kafka.started(lambda: AIOKafkaConsumer(**kafka.client_options(clients)), "reading") as consumer:
                consumer.assign([where])
                await consumer.seek_to_beginning()
                assert (await asyncio.wait_for(consumer.getone(), 20)).value == b"kept"
        seen = RunningStack.find(tmp_path)
        assert seen.ready
        assert seen.environment == before
        assert {name: record.pid for name, record in seen.children.items()} == {
            child.spec.name: child.pid for child in stack.children
        }
    assert RunningStack.find(tmp_path) is None
    assert all(is_gone(record.pid) for record in seen.children.values())


async def _cancel(clients):
    async with replies.connect(clients) as redis:
        return await redis.cancel("model", "request")


@pytest.mark.stack
async def test_the_stacks_own_servers_pass_the_doctor(tmp_path):
    settings = LocalStackSettings(data_dir=tmp_path)
    async with LocalStack(settings) as stack:
        clients = settings.model_copy(
            update={
                "kafka_bootstrap_servers": stack.urls["kafka"],
                "redis_url": stack.urls["redis"],
                "artifact_store_url": stack.environment()["AIAAS_ARTIFACT_STORE_URL"],
            }
        )
        await kafka.ensure_topics(clients)
        await kafka.ensure_topics(clients, "digits")
        facts = await eventually(
            lambda: _facts_with(clients, "aiaas.requests.digits"), what="the topic in the metadata"
        )
        apache = RunningStack.find(tmp_path).kafka.startswith("Apache")
    machine = {"file limit", "disk"}
    wrong = [finding for finding in examine(facts, clients.topics) if finding.verdict != "ok"]
    assert {finding.what for finding in wrong} - machine == (set() if apache else {"broker settings"})
    assert "archive" in {finding.what for finding in examine(facts, clients.topics) if finding.verdict == "ok"}


async def _facts_with(clients, topic):
    """A broker lists a topic a moment after the controller has created it."""
    facts = await doctor.gather(clients)
    return facts if topic in facts.topics else None


@pytest.mark.stack
async def test_usual_ports_that_are_taken_are_passed_over(tmp_path):
    with ExitStack() as taken:
        for port in (9092, 6379, 22_100):
            if is_free(port):
                taken.enter_context(socket.create_server(("127.0.0.1", port)))
        settings = LocalStackSettings(data_dir=tmp_path, local_kafka="embedded")
        async with LocalStack(settings, [dummy()]) as stack:
            ports = {int(url.removesuffix("/0").rpartition(":")[2]) for url in stack.urls.values()}
            assert not ports & {9092, 6379, 22_100}
            assert len(ports) == 3


@pytest.mark.stack
async def test_one_directory_has_one_stack(tmp_path):
    settings = LocalStackSettings(data_dir=tmp_path, local_kafka="embedded")
    async with LocalStack(settings):
        with pytest.raises(LocalStackError, match=f"process {os.getpid()}"):
            await LocalStack(settings).__aenter__()
        assert RunningStack.find(tmp_path).ready


@pytest.mark.stack
async def test_a_stack_that_cannot_start_stops_what_it_started(tmp_path):
    bad = Service("bad", (sys.executable, "-c", "raise SystemExit('no such model')"), 22_100, "DUMMY_PORT")
    events = []
    settings = LocalStackSettings(data_dir=tmp_path, local_kafka="embedded", restart_first_s=0.05)
    with pytest.raises(LocalStackError, match="no such model"):
        await LocalStack(settings, [bad, dummy()], events.append).__aenter__()
    assert {event.subject for event in events if event.phase == "stopped"} == {"kafka", "redis", "dummy"}


async def test_apache_kafka_is_required_or_replaced_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(LocalStackError, match="install a JDK"):
        await LocalStack(LocalStackSettings(data_dir=tmp_path, local_kafka="apache")).__aenter__()
    events = []
    async with LocalStack(LocalStackSettings(data_dir=tmp_path, local_kafka="auto"), on_event=events.append):
        assert any(event.phase == "warning" and "in memory" in event.message for event in events)


async def test_a_given_server_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("services.cli.local.kafka._GIVEN_TIMEOUT_S", 0.0)
    settings = LocalStackSettings(data_dir=tmp_path, kafka_bootstrap_servers="127.0.0.1:1")
    with pytest.raises(LocalStackError, match=r"AIAAS_KAFKA_BOOTSTRAP_SERVERS=127\.0\.0\.1:1"):
        await LocalStack(settings).__aenter__()


# A stack in another process, and how it can end


@contextmanager
def stack_process(tmp_path, local_kafka):
    """`aiaas up` in small: one dummy service that has a child of its own."""
    env = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "AIAAS_DATA_DIR": str(tmp_path / "state"),
        "AIAAS_LOCAL_KAFKA": local_kafka,
        "DUMMY_CHILD_PID": str(tmp_path / "grandchild"),
    }
    with (tmp_path / "up.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", UP, *DUMMY], env=env, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def _when_ready(tmp_path) -> RunningStack:
    def ready():
        stack = RunningStack.find(tmp_path / "state")
        return stack if stack and stack.ready else None

    return await eventually(ready, within_s=90, what=f"ready, see {tmp_path / 'up.log'}")


async def _all_gone(stack: RunningStack, *pids: int) -> None:
    everyone = {*pids, *(child.pid for child in stack.children.values())}
    ports = {int(url.removesuffix("/0").rpartition(":")[2]) for url in stack.urls.values()}
    await eventually(lambda: all(is_gone(pid) for pid in everyone), what="the end of all processes")
    await eventually(lambda: all(is_free(port) for port in ports), what="the end of all listeners")


@pytest.mark.stack
@pytest.mark.chaos
@pytest.mark.parametrize("local_kafka", ["auto", "embedded"])
async def test_a_stack_that_is_killed_leaves_nothing_behind(tmp_path, local_kafka):
    with stack_process(tmp_path, local_kafka) as process:
        stack = await _when_ready(tmp_path)
        grandchild = await pid_in(tmp_path / "grandchild")
        process.send_signal(signal.SIGKILL)
        await _all_gone(stack, grandchild)
        assert RunningStack.find(tmp_path / "state") is None


@pytest.mark.stack
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_stack_that_is_told_to_stop_drains_in_order(tmp_path, signum):
    with stack_process(tmp_path, "embedded") as process:
        stack = await _when_ready(tmp_path)
        grandchild = await pid_in(tmp_path / "grandchild")
        process.send_signal(signum)
        assert await asyncio.to_thread(process.wait, 30) == 0
        await _all_gone(stack, grandchild)
    stopped = [line.partition(":")[0] for line in (tmp_path / "up.log").read_text().splitlines() if "stopped" in line]
    assert stopped == ["dummy", "redis", "kafka"]
    assert not (tmp_path / "state" / "run" / "stack.json").exists()


@pytest.mark.stack
async def test_a_second_signal_ends_a_drain_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("DUMMY_IGNORES_TERM", "1")
    with stack_process(tmp_path, "embedded") as process:
        stack = await _when_ready(tmp_path)
        process.send_signal(signal.SIGINT)
        await eventually(lambda: "dummy: stopping" in (tmp_path / "up.log").read_text())
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 5) == 0
        await _all_gone(stack)
    assert "Traceback" not in (tmp_path / "up.log").read_text()


@pytest.mark.stack
async def test_a_stack_that_is_told_to_stop_while_it_starts_stops(tmp_path):
    with stack_process(tmp_path, "auto") as process:
        await eventually(lambda: "kafka: starting" in (tmp_path / "up.log").read_text(), within_s=90)
        stack = RunningStack.find(tmp_path / "state")
        family = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0
        await _all_gone(stack, *family)


@pytest.mark.stack
async def test_down_stops_a_stack_and_says_if_there_was_none(tmp_path):
    with stack_process(tmp_path, "embedded") as process:
        stack = await _when_ready(tmp_path)
        reaped = asyncio.create_task(asyncio.to_thread(process.wait, 30))
        assert await stop_stack(tmp_path / "state")
        await _all_gone(stack, process.pid)
        assert await reaped == 0
        assert not await stop_stack(tmp_path / "state")


@pytest.mark.stack
@pytest.mark.chaos
async def test_others_can_kill_a_child_and_wait_for_its_successor(tmp_path):
    with stack_process(tmp_path, "embedded"):
        stack = await _when_ready(tmp_path)
        victim = stack.children["dummy"].pid
        os.kill(victim, signal.SIGKILL)
        successor = await stack.wait_ready("dummy", after_pid=victim)
        assert successor.restarts == 1
        assert not is_gone(successor.pid)


@pytest.mark.stack
@pytest.mark.alone
@pytest.mark.skipif(shutil.which("java") is None, reason="no Java on this machine")
async def test_a_second_start_takes_seconds(tmp_path):
    settings = LocalStackSettings(data_dir=tmp_path)
    async with LocalStack(settings):
        pass
    started_s = time.monotonic()
    async with LocalStack(settings):
        assert time.monotonic() - started_s < 20
