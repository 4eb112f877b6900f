"""The reaction, on a log in memory: claims that win and lose, jobs that fail, attempts that are superseded."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from services.optimizer import reactor as module
from services.optimizer.claims import Listening
from services.optimizer.progress import Progressed
from services.optimizer.reactor import Reactor
from services.optimizer.settings import OptimizerSettings
from shared import events as ev
from shared.artifacts import Artifact
from shared.errors import LogUnavailable, StoreUnavailable
from shared.events import StepFinished
from shared.registry import Entry, Registry, fold
from shared.signature import Signature

ARTIFACT = Artifact(uri="memory:///sha256/00/00", sha256="0" * 64, byte_size=1)
SETTINGS = OptimizerSettings(instance="a", incarnation="1")
ME, OTHER = "a/1", "b/1"


class MemoryLog:
    """What a `RegistryLog` does, without Kafka. `before[n]` is told just before the n-th publication."""

    def __init__(self):
        self.registry = Registry()
        self.events = []
        self.before = {}
        self.failures = []
        self._changed = asyncio.Condition()

    async def tell(self, event):
        async with self._changed:
            self.events.append(event)
            self.registry = fold(self.registry, Entry(len(self.events) - 1, len(self.events), event))
            self._changed.notify_all()

    async def publish(self, event):
        if self.failures:
            if self.failures.pop(0) == "lost":
                raise LogUnavailable("lost")
            await self.tell(event)
            raise LogUnavailable("written, but nobody knows")
        for other in self.before.pop(type(event), ()):
            await self.tell(other)
        await self.tell(event)
        return self.registry

    async def reached(self, offset):
        async with self._changed:
            await self._changed.wait_for(lambda: self.registry.offset >= offset)
        return self.registry

    def count(self, event_type):
        return sum(isinstance(event, event_type) for event in self.events)


class Jobs:
    """Jobs whose outcomes are lined up: an error to raise, `hang`, or a step to finish before the store goes away.

    Otherwise the version becomes ready.
    """

    def __init__(self):
        self.outcomes = []
        self.ran = []
        self.ended = 0

    def can_do(self, version):
        return version.training is None

    async def run(self, task, hooks):
        version = task.version
        self.ran.append((version.model, version.attempt, *version.steps))
        await hooks.on_progress(Progressed("vet", 0.1))
        try:
            match self.outcomes.pop(0) if self.outcomes else None:
                case Exception() as error:
                    raise error
                case "hang":
                    await asyncio.Event().wait()
                case StepFinished() as step:
                    await hooks.record(step)
                    raise StoreUnavailable("away")
        finally:
            self.ended += 1
        common = {"model": version.model, "version": version.number, "attempt": version.attempt, "owner": ME}
        return (
            ev.VariantReady(
                **common,
                variant="fp32",
                artifact=ARTIFACT,
                signature=Signature(inputs=(), outputs=()),
                batch_cap=1,
                measurements=ev.Measurements(),
            ),
            ev.VariantRejected(**common, variant="int8-weight-only", reason="r"),
            ev.ModelReady(**common, variant="fp32", reason="r"),
        )


class Telemetry:
    def event(self, _, **fields):
        return fields

    async def publish(self, events):
        pass


class Rig:
    def __init__(self):
        self.log = MemoryLog()
        self.jobs = Jobs()
        self.dead = set()

    @asynccontextmanager
    async def running(self):
        listening = Listening(ME, lambda owner: owner not in self.dead, lambda: 0.0)
        listening.is_dead = self.dead.__contains__
        reactor = Reactor(SETTINGS, self.log, listening, self.jobs, Telemetry())
        task = asyncio.create_task(reactor.run())
        try:
            yield
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def state(self, wanted, model="m"):
        async with asyncio.timeout(5):
            while model not in self.log.registry.models or self.version(model).state != wanted:
                await self.log.reached(self.log.registry.offset + 1)
        return self.version(model)

    def version(self, model="m"):
        return self.log.registry.version(model, 1)


@pytest.fixture
def rig(monkeypatch):
    monkeypatch.setattr(module, "_LOOK_AGAIN_S", 0.02)
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(module, "_MAX_WAIT_S", 0.02)
    monkeypatch.setattr(module, "_PARKED_S", 0.05)
    return Rig()


def uploaded(model="m", upload="u"):
    sha256 = hashlib.sha256(model.encode()).hexdigest()  # the same file would be the same work
    return ev.ModelUploaded(model=model, upload_id=upload, artifact=replace(ARTIFACT, sha256=sha256))


def claimed(attempt, owner):
    return ev.OptimizationClaimed(model="m", version=1, attempt=attempt, owner=owner)


async def test_an_upload_becomes_ready(rig):
    async with rig.running():
        await rig.log.tell(uploaded())
        version = await rig.state("ready")
        await rig.log.tell(uploaded())  # told again
        await rig.log.tell(uploaded("n"))
        await rig.state("ready", "n")
    assert (version.attempt, version.owner, version.chosen) == (1, ME, "fp32")
    assert rig.jobs.ran == [("m", 1), ("n", 1)]
    assert rig.log.registry.model("m").active == 1


async def test_a_lost_claim_is_left_alone(rig):
    rig.log.before[ev.OptimizationClaimed] = [claimed(1, OTHER)]
    async with rig.running():
        await rig.log.tell(uploaded())
        await rig.log.tell(uploaded("n"))
        await rig.state("ready", "n")
    assert rig.jobs.ran == [("n", 1)]
    assert rig.version().owner == OTHER


async def test_a_death_is_noticed_without_any_news_in_the_log(rig):
    await rig.log.tell(uploaded())
    await rig.log.tell(claimed(1, OTHER))
    async with rig.running():
        await asyncio.sleep(0.1)
        assert rig.jobs.ran == []
        rig.dead.add(OTHER)
        assert (await rig.state("ready")).attempt == 2


async def test_a_superseded_job_is_ended(rig):
    rig.jobs.outcomes = ["hang"]
    async with rig.running():
        await rig.log.tell(uploaded())
        await rig.state("optimizing")
        await rig.log.tell(claimed(2, OTHER))
        await rig.log.tell(uploaded("n"))
        await rig.state("ready", "n")
    assert rig.jobs.ended == 2
    assert rig.version().owner == OTHER


async def test_a_retired_version_is_dropped(rig):
    rig.jobs.outcomes = ["hang"]
    async with rig.running():
        await rig.log.tell(uploaded())
        await rig.state("optimizing")
        await rig.log.tell(ev.ModelRetired(model="m", version=1))
        await rig.log.tell(uploaded("n"))
        await rig.state("ready", "n")
    assert rig.jobs.ended == 2


@pytest.mark.parametrize("failure", [StoreUnavailable("away"), OSError("disk full"), LogUnavailable("away")])
async def test_what_is_not_the_models_fault_is_tried_again_under_the_same_attempt(rig, failure):
    rig.jobs.outcomes = [failure] * 3
    async with rig.running():
        await rig.log.tell(uploaded())
        version = await rig.state("ready")
    assert version.attempt == 1
    assert len(rig.jobs.ran) == 4


async def test_a_job_that_keeps_failing_lets_others_pass_and_comes_back(rig):
    rig.jobs.outcomes = [StoreUnavailable("away")] * module._TRIES
    async with rig.running():
        await rig.log.tell(uploaded())
        await rig.state("optimizing")
        await rig.log.tell(uploaded("n"))
        await rig.state("ready", "n")
        assert rig.version().state == "optimizing"
        assert (await rig.state("ready")).attempt == 1


@pytest.mark.parametrize("failures", [["lost"], ["written"], ["lost", "written", "lost"]])
async def test_a_claim_that_was_not_acknowledged(rig, failures):
    rig.log.failures = failures
    async with rig.running():
        await rig.log.tell(uploaded())
        version = await rig.state("ready")
    assert version.attempt == 1
    assert rig.log.count(ev.OptimizationClaimed) == 1


@pytest.mark.parametrize("when", [ev.VariantReady, ev.VariantRejected, ev.ModelReady])
@pytest.mark.parametrize("how", ["lost", "written"])
async def test_results_that_were_not_acknowledged_are_told_once(rig, when, how, monkeypatch):
    publish = rig.log.publish

    async def failing(event):
        if isinstance(event, when) and not failed:
            failed.append(event)
            rig.log.failures = [how]
        return await publish(event)

    failed = []
    monkeypatch.setattr(rig.log, "publish", failing)
    async with rig.running():
        await rig.log.tell(uploaded())
        version = await rig.state("ready")
    assert len(version.rejections) == 1
    assert rig.log.count(ev.ModelReady) == 1


async def test_a_finished_step_is_in_the_log_before_the_job_goes_on(rig):
    step = StepFinished(model="m", version=1, attempt=1, owner=ME, step="fp32", key="ab" * 32, result=ARTIFACT)
    rig.jobs.outcomes = [step]
    async with rig.running():
        await rig.log.tell(uploaded())
        version = await rig.state("ready")
    assert rig.jobs.ran == [("m", 1), ("m", 1, "fp32")]
    assert version.steps["fp32"].key == "ab" * 32


async def test_a_cancelled_job_is_ended(rig):
    rig.jobs.outcomes = ["hang"]
    async with rig.running():
        await rig.log.tell(uploaded())
        await rig.state("optimizing")
        await rig.log.tell(ev.OptimizationCancelled(model="m", version=1))
        await rig.log.tell(uploaded("n"))
        await rig.state("ready", "n")
    assert rig.jobs.ended == 2
    assert (rig.version().state, rig.version().code) == ("rejected", "cancelled")
