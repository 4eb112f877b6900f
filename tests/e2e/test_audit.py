"""Audit by command, over the whole stack: what was asked is archived, explained and exported, and holds."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import pytest

from support import uploads
from support.front_door import row
from support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("apache_kafka")]
ASKED = 8


def model():
    node = uploads.helper.make_node("Relu", ["x"], ["y"])
    shape = (uploads.FP32, ("batch", 8))
    return uploads.model([node], {"x": shape}, {"y": shape}, {}).SerializeToString()


@pytest.fixture
def aiaas(stack):
    async def run(*arguments):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli", *arguments),
            env={**os.environ, **stack.environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 120)
        return process.returncode, out.decode(), err.decode()

    return run


async def test_what_was_asked_is_archived_explained_and_exported(door, backbone, aiaas, tmp_path):
    name = backbone.model()
    version = await door.serve(name, model())
    answers = await asyncio.gather(*(door.infer(name, row(seed)) for seed in range(ASKED)))
    assert {answer.status for answer in answers} == {200}

    async def exported():
        out = tmp_path / f"bundle-{len(list(tmp_path.iterdir()))}"
        code, printed, err = await aiaas("audit", "export", "--model", name, "--out", str(out), "--json")
        assert code == 0, err
        assert json.loads(printed)["requests"] == ASKED, printed
        return out

    bundle = await eventually(exported, within_s=90, what="all requests in an export")
    command = [sys.executable, "-I", "-S", str(bundle / "verify.py"), "--json"]
    verified = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads(verified.stdout)["counts"]["results present"] == ASKED

    code, printed, err = await aiaas("audit", "explain", "--request", answers[3].id, "--json")
    assert code == 0, err
    [found] = json.loads(printed)
    assert (found["version"], found["agrees"], found["decided_by"]["event"]) == (version, True, "ModelReady")
    code, printed, err = await aiaas("models", "list", "--as-of", found["completed_at"], "--json")
    assert code == 0, err
    assert name in {each["name"] for each in json.loads(printed)}

    # Over all that this stack was ever asked, by whichever test.
    code, printed, err = await aiaas("audit", "verify", "--json")
    assert code == 0, (json.loads(printed)["broken"][:5] if printed else "", err)
