"""A worker serves a `.pt2` that is on the log, and takes no part in it where it may not load it."""

from __future__ import annotations

import io
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from services.worker.settings import WorkerSettings
from shared import events
from shared.signature import Signature, TensorSpec
from shared.tensors import to_numpy
from support.worker_rig import rig, worker_running

torch = pytest.importorskip("torch", reason="no torch: the extra `torch` is not installed")
pytestmark = pytest.mark.stack
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=("batch", 3), batch_axis=0),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=("batch", 3), batch_axis=0),),
)


class Bessel(torch.nn.Module):
    """Nothing that ONNX has."""

    def forward(self, x):
        return torch.special.bessel_j0(x)


def program():
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        exported = torch.export.export(Bessel(), (torch.zeros(2, 3),), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(exported, file)
    return SimpleNamespace(content=file.getvalue(), signature=SIGNATURE, batch_cap=8)


async def upload(there, name):
    """As an optimizer that vetted it would put it on the log."""
    model = program()
    await there.ensure(name)
    artifact = await there.store(model.content)
    await there.log.publish(events.ModelUploaded(model=name, upload_id="u", artifact=artifact, tenant="acme"))
    attempt = {"model": name, "version": 1, "attempt": 1, "owner": "rig"}
    await there.log.publish(events.OptimizationClaimed(**attempt))
    await there.log.publish(
        events.VariantReady(
            **attempt,
            variant="pt2",
            artifact=artifact,
            signature=model.signature,
            batch_cap=model.batch_cap,
            measurements=events.Measurements(),
            engine="torch",
        )
    )
    await there.log.publish(events.ModelReady(**attempt, variant="pt2", reason="it does not convert"))


async def test_a_program_is_served_by_torch_for_tenants_who_were_let(backbone):
    name, rows = backbone.model(), [[0.0, 1.0, 2.0]]
    request = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": rows[0]}]})
    settings = backbone.settings(WorkerSettings, device="cpu", threads=1)
    async with rig(settings) as there:
        await upload(there, name)
        await there.send(name, request, ce_id="r-1", content_type="application/json")
        async with worker_running(settings):  # it may not load it: the record waits for one that may
            await there.send(name, request, ce_id="r-2", content_type="application/json")
            with pytest.raises(AssertionError):
                await there.result(name, "r-1", within_s=6)
        trusting = settings.model_copy(update={"pt2_tenants": ["acme"]})
        async with worker_running(trusting):
            results = [await there.result(name, request_id, within_s=60) for request_id in ("r-1", "r-2")]
            receipts = await there.outcomes(name, 2, within_s=60)
    for result in results:
        assert result.status == "succeeded", result.error
        found = to_numpy(result.outputs[0])
        np.testing.assert_allclose(found, torch.special.bessel_j0(torch.tensor(rows)).numpy(), rtol=1e-6)
    for receipt in receipts.values():
        assert (receipt.variant, receipt.runtime.engine) == ("pt2", "torch")
        assert receipt.runtime.version == str(torch.__version__)
