"""A gateway that serves `digits`, the model of the documents' examples, under a name of the test's own.

`Served` has one model that stays, and makes others for who changes them. A thread can send to it: it runs in the
test's event loop.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from shared.results import Result
from shared.tensors import from_numpy, to_numpy
from support.fleet import Fleet
from support.gateway import Gateway, Worker, worker, writer
from support.onnx_models import DIGITS

CONTENT = b"model"


class Digits(Worker):
    """Answers with the index of each row's largest number."""

    def _result(self, headers, request, behaviour):
        result = super()._result(headers, replace(request, outputs=()), behaviour)
        if result.status != "succeeded":
            return result
        rows = to_numpy(request.inputs[0])
        about = {"id": result.id, "model_name": result.model_name, "model_version": result.model_version}
        outputs = (from_numpy("class", rows.argmax(axis=1).astype(np.int64)),)
        return Result(**about, status="succeeded", outputs=outputs)


@dataclass
class Served:
    """`model` is served; the gateway knows of a live worker."""

    gateway: Gateway
    backbone: object
    log: object
    model: str

    async def another(self):
        """A model that is ready and held, for who will change it. Nobody answers its requests."""
        return await ready(self.gateway, self.log, self.backbone.model())

    async def queued(self, model=None):
        """The id of a request that is never answered."""
        return await self._later(model or self.model, {"behaviour": "silent"})

    async def answered(self):
        """The id of a request that has its answer."""
        request_id = await self._later(self.model, {})
        path = f"/v2/models/{self.model}/requests/{request_id}"
        await self.gateway.until(path, lambda response: response.json().get("status") == "succeeded")
        return request_id

    async def exported(self, model):
        """The id of an export that nobody builds."""
        response = await self.gateway.client.post(
            f"/v2/repository/models/{model}/versions/1/export", params={"format": "bundle"}
        )
        assert response.status_code == 202, response.text
        return response.json()["id"]

    async def _later(self, model, parameters):
        image = {"name": "image", "datatype": "FP32", "shape": [1, 4], "data": [0.0, 2.0, 0.5, 8.0]}
        response = await self.gateway.client.post(
            f"/v2/models/{model}/infer",
            content=json.dumps({"inputs": [image], "parameters": parameters}),
            headers={"prefer": "respond-async"},
        )
        assert response.status_code == 202, response.text
        return response.json()["id"]


async def ready(gateway, log, model):
    """Upload a model and put it through an optimizer that lets everything pass."""
    uploaded = await gateway.client.post(f"/v2/repository/models/{model}/versions", content=CONTENT)
    assert uploaded.status_code == 202, uploaded.text
    await log.make_ready(model, 1, DIGITS)
    await gateway.until(f"/v2/models/{model}/ready", lambda response: response.status_code == 200)
    return model


@contextlib.asynccontextmanager
async def served(backbone, settings):
    """The gateway of these settings, a fleet that obeys, and a worker on the one model that stays."""
    async with Gateway(settings) as gateway, writer(settings) as log, Fleet.of(settings, log):
        await gateway.ready()
        model = await ready(gateway, log, backbone.model())
        async with worker(settings, model, Digits):
            yield Served(gateway, backbone, log, model)
