"""Versions come, are promoted and rolled back under load: no request fails, and each answer is its version's."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import onnxruntime
import pytest

from shared.tensors import to_numpy
from support import uploads
from support.front_door import row
from support.waiting import eventually

pytestmark = pytest.mark.stack


def scaled(factor):
    """`y = x * factor`: the answer tells the version."""
    node = uploads.helper.make_node("Mul", ["x", "factor"], ["y"])
    shape = (uploads.FP32, ("batch", 8))
    constants = {"factor": np.array([factor], np.float32)}
    return uploads.model([node], {"x": shape}, {"y": shape}, constants).SerializeToString()


class Load:
    """Callers who ask without naming a version, one request after the other."""

    def __init__(self, door, model):
        self._door = door
        self._model = model
        self.answers = []

    async def call(self, inputs):
        while True:
            self.answers.append((inputs, await self._door.infer(self._model, inputs)))

    async def answered_by(self, version):
        """Wait until every caller has been answered by this version after now."""
        seen = len(self.answers)
        await eventually(
            lambda: self.answers[seen:] and {answer.version for _, answer in self.answers[-8:]} == {version},
            within_s=30,
            what=f"answers of version {version}",
        )


@asynccontextmanager
async def load(door, model, callers=4):
    asked = Load(door, model)
    tasks = [asyncio.create_task(asked.call(row(seed))) for seed in range(callers)]
    try:
        yield asked
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_promotion_and_rollback_under_load_fail_no_request(door, backbone):
    name, versions = backbone.model(), {1: scaled(2.0), 2: scaled(3.0)}
    await door.serve(name, versions[1])
    async with load(door, name) as asked:
        await asked.answered_by(1)
        assert await door.upload(name, versions[2]) == 2
        await door.through_the_gate(name, 2)
        by_name = await door.infer(name, row(9), version=2)
        await asked.answered_by(1)
        await door.change(name, "versions/2/promote")
        await asked.answered_by(2)
        await door.change(name, "rollback")
        await asked.answered_by(1)

    assert by_name.version == 2
    sessions = {number: onnxruntime.InferenceSession(content) for number, content in versions.items()}
    outcomes = door.outcomes()

    async def settled():
        await asyncio.to_thread(outcomes.poll)
        return all((name, answer.id) in outcomes.by_id for _, answer in asked.answers)

    assert [answer for _, answer in asked.answers if answer.status != 200] == []
    await eventually(settled, within_s=20, what="outcomes of all answers")
    for inputs, answer in [*asked.answers, (row(9), by_name)]:
        expected = sessions[answer.version].run(None, inputs)[0]
        assert to_numpy(answer.outputs[0]).tobytes() == expected.tobytes()
        [receipt] = outcomes.by_id[name, answer.id]
        assert (receipt.model_version, receipt.status) == (answer.version, "succeeded")
