"""Unload and load, seen from the worker: what it holds, what it tells, and what becomes of requests."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from services.worker.settings import WorkerSettings
from shared import events, heartbeats
from support import onnx_models
from support.waiting import eventually
from support.worker_rig import rig, worker_running

pytestmark = pytest.mark.stack


def body(rows=1):
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 4], "data": np.zeros(4 * rows).tolist()}
    return orjson.dumps({"inputs": [tensor]})


async def test_an_unloaded_model_is_let_go_and_comes_back(backbone):
    settings = backbone.settings(WorkerSettings, threads=1)
    async with rig(settings) as there, worker_running(settings), heartbeats.follow(settings) as beats:
        name, other = backbone.model(), backbone.model()
        await there.upload(name, onnx_models.linear())
        await there.upload(other, onnx_models.identity("FP32"))

        def held(offset):
            """What the worker holds, once it tells so at this offset of the registry's log."""
            told = [beat.loaded for beat in beats.alive() if beat.registry_offset >= offset]
            return {loaded.model for loaded in told[0]} if told else None

        async def holds(expected):
            offset = there.log.registry.offset
            await eventually(lambda: held(offset) == expected)

        await holds({name, other})
        await there.send(name, body(), ce_id="before")
        assert (await there.result(name, "before")).status == "succeeded"

        await there.log.publish(events.ModelUnloaded(model=name))
        await holds({other})
        await there.send(name, body(), ce_id="meanwhile")
        await there.send(name, body(), ce_id="by-number", model_version="1")
        for request_id in ("meanwhile", "by-number"):
            result = await there.result(name, request_id)
            assert (result.status, result.error["code"]) == ("failed", "not_loaded")
        await holds({other})  # asking for it did not load it

        await there.upload(name, onnx_models.linear())
        await holds({other})  # nor did an upload

        await there.log.publish(events.ModelLoaded(model=name))
        await holds({name, other})
        await there.send(name, body(), ce_id="after")
        assert (await there.result(name, "after")).status == "succeeded"


async def test_a_variant_that_two_models_share_is_held_for_the_other(backbone):
    settings = backbone.settings(WorkerSettings, threads=1)
    async with rig(settings) as there, worker_running(settings):
        name, other = backbone.model(), backbone.model()
        model = onnx_models.linear()
        await there.upload(name, model)
        await there.upload(other, model)
        await there.log.publish(events.ModelUnloaded(model=name))
        await there.send(other, body(), ce_id="one")
        assert (await there.result(other, "one")).status == "succeeded"
