"""The documented way back from the loss of everything but a copy of the store (docs/audit.md, Backup).

A whole platform of its own, Kafka and Redis included, in a directory that is deleted; another goes on from the copy.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from services.audit import archive_source
from services.audit.records import Selection
from services.cli.local import standard_services
from shared.settings import PlatformSettings
from shared.tensors import output_digest
from support import onnx_models
from support.front_door import body, front_door
from support.local import local_stack
from support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.chaos, pytest.mark.usefixtures("apache_kafka", "own_servers")]
ASKED, AGAIN = 24, 8
ENV = {"AIAAS_AUDIT_INTERVAL_S": "1", "AIAAS_MIN_GAIN": "1000", "AIAAS_TIME_BUDGET_S": "5"}
MODELS = {f"backup-{letter}": onnx_models.linear(seed=number) for number, letter in enumerate("ab")}


@pytest.fixture
def own_servers(monkeypatch):
    """Servers of the test's own, which are lost with all they had."""
    for given in ("AIAAS_KAFKA_BOOTSTRAP_SERVERS", "AIAAS_REDIS_URL"):
        monkeypatch.delenv(given, raising=False)


def row(number):
    return {"x": np.random.default_rng(number).standard_normal((1 + number % 3, 4)).astype(np.float32)}


async def aiaas(environment, *arguments, expected=0):
    """What a command printed."""
    command = [sys.executable, "-m", "services.cli", *arguments]
    done = await asyncio.to_thread(
        subprocess.run, command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == expected, (arguments, done.returncode, done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


async def archived(environment, count):
    """All outcomes of so many requests are in the archive, and the registry's log."""
    names = {name.removeprefix("AIAAS_").lower(): value for name, value in environment.items()}
    settings = PlatformSettings(**{name: names[name] for name in names if name in PlatformSettings.model_fields})

    async def look():
        async with archive_source.open_source(settings) as source:
            there = [outcome async for outcome in source.outcomes(Selection())]
            registry = [entry async for entry in source.registry()]
        assert len(there) == count, f"{len(there)} of {count} outcomes"
        assert sum(type(entry.event).__name__ == "ModelReady" for entry in registry) == len(MODELS)
        return there

    return await eventually(look, within_s=90, what="an archive of everything")


async def answers_of(door):
    """The answers to the same requests, by model and number."""
    found = {}
    for name in MODELS:
        for number in range(AGAIN):
            answer = await door.infer(name, row(number))
            assert answer.status == 200, answer
            found[name, number] = (answer.version, output_digest(answer.outputs))
    return found


async def first_life(environment, copy):
    """Two models and traffic, by HTTP and from Kafka; archived, replayed from the archive, and copied."""
    async with front_door(environment) as door:
        for name, model in MODELS.items():
            await door.serve(name, model.content)
        answers, outcomes = await answers_of(door), door.outcomes()
        for name in MODELS:
            for number in range(AGAIN, ASKED):
                await door.send(name, body(row(number)), ce_id=f"{name}-{number}")

        async def all_answered():
            await asyncio.to_thread(outcomes.poll)
            return len(outcomes.accepted) == len(MODELS) * ASKED

        await eventually(all_answered, within_s=90, what="all outcomes")
    await archived(environment, len(MODELS) * ASKED)
    for name in MODELS:
        replayed = json.loads(await aiaas(environment, "audit", "replay", "-m", name, "--source", "archive", "--json"))
        assert replayed["identical"] == replayed["replayed"] == ASKED, replayed
    kept = await aiaas(environment, "audit", "checkpoints")
    told = json.loads(await aiaas(environment, "audit", "backup", "--to", copy, "--json"))
    assert told["objects"] >= len(MODELS)
    assert told["files"]
    assert not told["damaged"]
    return answers, kept


async def second_life(environment, answers):
    """The same models answer the same; old and new traffic is replayed, explained and verified."""
    async with front_door(environment) as door:
        for name in MODELS:

            async def ready(name=name):
                return (await door.http.get(f"/v2/models/{name}/ready")).status_code == 200

            await eventually(ready, within_s=90, what=f"a worker that holds {name}")
        assert await answers_of(door) == answers
    whole = await archived(environment, len(MODELS) * (ASKED + AGAIN))
    assert len({outcome.log for outcome in whole}) == 2
    for name in MODELS:
        for source in ("archive", "auto"):
            printed = await aiaas(environment, "audit", "replay", "-m", name, "--source", source, "--json")
            replayed = json.loads(printed)
            assert replayed["identical"] == replayed["replayed"] == ASKED + AGAIN, replayed
    [why] = json.loads(await aiaas(environment, "audit", "explain", "-r", "backup-a-12", "--json"))
    assert (why["agrees"], why["decided_by"]["event"]) == (True, "ModelReady")


async def test_a_platform_goes_on_from_a_copy_of_the_store(tmp_path):
    first, second, copy, kept = (tmp_path / name for name in ("first", "second", "copy", "kept.jsonl"))
    with local_stack(first, standard_services(workers=2), service_env=ENV, local_kafka="apache") as stack:
        answers, checkpoints = await first_life(stack.environment, copy.as_uri())
    kept.write_text(checkpoints)
    key = tmp_path / "kept-key.pem"
    shutil.copy(first / "state" / "archiver" / "audit" / "signing-key.pem", key)
    public_key = json.loads(checkpoints.splitlines()[0])["public_key"]
    shutil.rmtree(first)  # the broker, Redis and the store

    alone = {"AIAAS_ARTIFACT_STORE_URL": copy.as_uri(), "AIAAS_DATA_DIR": str(tmp_path / "nobody")}
    verify = ("audit", "verify", "--public-key", public_key, "--checkpoint", str(kept), "--json")
    report = json.loads(await aiaas(alone, *verify, "--source", "archive"))
    assert report["counts"]["requests"] == report["counts"]["results"] == len(MODELS) * ASKED

    about = {"artifact_store_url": copy.as_uri(), "local_kafka": "apache"}
    with local_stack(second, **about) as servers:
        told = json.loads(await aiaas(servers.environment, "audit", "restore", "--json"))
        assert told["restored"] > 0
    env = {**ENV, "AIAAS_AUDIT_KEY_FILE": str(key)}
    with local_stack(second, standard_services(workers=2), service_env=env, **about) as stack:
        await second_life(stack.environment, answers)
        for source in ("archive", "both"):
            report = json.loads(await aiaas(stack.environment, *verify, "--source", source))
            assert report["counts"]["requests"] == len(MODELS) * (ASKED + AGAIN), report
