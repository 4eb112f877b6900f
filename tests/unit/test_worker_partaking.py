"""A worker takes no part in a model that it lacks an engine for, and comes back when that is over."""

from __future__ import annotations

import asyncio

import pytest

from services.worker.partaking import Partaking, lacking
from shared.events import FormatRecognised, Measurements, ModelRetired, ModelUploaded, OptimizationClaimed, VariantReady
from shared.events import ModelReady as Ready
from support.facts import SIGNATURE, artifact, folded
from support.waiting import eventually


class FakeIntake:
    def __init__(self, failure=None):
        self.log, self.failure = [], failure

    async def run(self):
        self.log.append("joined")
        if self.failure:
            raise self.failure
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.log.append("drained")


def model(engine, *more, recognised=None):
    attempt = {"model": "m", "version": 1, "attempt": 1, "owner": "o"}
    ready = VariantReady(
        **attempt,
        variant="v",
        artifact=artifact(),
        signature=SIGNATURE,
        batch_cap=1,
        measurements=Measurements(),
        engine=engine,
    )
    uploaded = ModelUploaded(model="m", upload_id="u", artifact=artifact(), tenant="acme")
    known = () if recognised is None else (FormatRecognised(**attempt, format=recognised, needs=(), handed_on=False),)
    done = ready, Ready(**attempt, variant="v", reason="")
    registry = folded(uploaded, OptimizationClaimed(**attempt), *known, *done, *more)
    return registry.model("m")


def test_what_is_lacking_is_what_ready_versions_need():
    everyone = {"pt2": ["*"]}
    assert lacking(model("torch"), {"onnxruntime": "1"}, everyone) == {"torch"}
    assert lacking(model("torch"), {"onnxruntime": "1", "torch": "2"}, everyone) == set()
    assert lacking(model("onnxruntime"), {"onnxruntime": "1"}, {}) == set()
    assert lacking(model("torch", ModelRetired(model="m")), {"onnxruntime": "1"}, everyone) == set()


@pytest.mark.parametrize(("tenants", "trusted"), [([], False), (["other"], False), (["acme"], True), (["*"], True)])
def test_programs_are_loaded_of_tenants_alone_who_were_let(tenants, trusted):
    lists = {"pt2": tenants, "torchscript": []}
    assert bool(lacking(model("torch"), {"torch": "2"}, lists)) is not trusted
    script = model("torch", recognised="torchscript")
    assert lacking(script, {"torch": "2"}, lists) == {"AIAAS_TORCHSCRIPT_TENANTS with 'acme'"}
    assert not lacking(script, {"torch": "2"}, {"torchscript": ["acme"]})


async def test_it_joins_and_leaves_and_joins_again():
    intake = FakeIntake()
    partaking = Partaking("m", intake)
    partaking.say(["torch"])
    task = asyncio.create_task(partaking.run())
    await asyncio.sleep(0.01)
    assert intake.log == []
    for expected, missing in ((1, []), (2, ["torch"]), (3, [])):
        partaking.say(missing)
        await eventually(lambda count=expected: len(intake.log) == count or None, what="a change")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert intake.log == ["joined", "drained", "joined", "drained"]


async def test_an_intake_that_fails_ends_it():
    partaking = Partaking("m", FakeIntake(RuntimeError("broken")))
    partaking.say([])
    with pytest.raises(RuntimeError, match="broken"):
        await partaking.run()
