"""What the README says is true: its example runs, its links lead somewhere, its variables exist."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from services.audit.settings import AuditSettings
from services.cli.local import LocalStackSettings
from services.gateway.settings import GatewaySettings
from services.monitor.settings import MonitorSettings
from services.optimizer.settings import OptimizerSettings
from services.worker.settings import WorkerSettings
from support import onnx_models
from support.waiting import eventually

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.stack
async def test_the_example_of_the_kafka_contract_runs(stack, backbone):
    name = backbone.model()
    model = f"{stack.gateway_url}/v2/repository/models/{name}/versions"
    async with httpx.AsyncClient() as http:
        uploaded = (await http.post(model, content=onnx_models.linear().content)).raise_for_status().json()

        async def ready():
            state = (await http.get(stack.gateway_url + uploaded["status_url"])).json()["state"]
            assert state != "rejected"
            return state == "ready"

        await eventually(ready, within_s=60, what="the model ready")
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    example = example.replace('"my-model"', repr(name))
    example = example.replace('f"aiaas.requests.', f'f"{stack.environment["AIAAS_TOPIC_PREFIX"]}requests.')
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", example],
        env=os.environ | stack.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(r"succeeded \[(-?[\d.e-]+(, )?){4}\]\n", ran.stdout), ran.stdout


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("variable", sorted(set(re.findall(r"`AIAAS_([A-Z_]+)`", README))))
def test_variables_exist(variable):
    kinds = (
        GatewaySettings,
        WorkerSettings,
        OptimizerSettings,
        MonitorSettings,
        AuditSettings,
        LocalStackSettings,
    )
    assert any(variable.lower() in kind.model_fields for kind in kinds)
