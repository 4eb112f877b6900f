"""Declared steps in an optimizer's job: vetted with the model, and a reason if they can't serve with it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from msgspec.structs import replace

from services.optimizer.confined import Sandbox
from services.optimizer.job import Jobs
from services.optimizer.plan import Means
from services.optimizer.rejections import ADVICE
from services.optimizer.settings import OptimizerSettings
from services.optimizer.task import Hooks, Task
from shared import events as ev
from shared.artifacts import ArtifactStore
from shared.optimization import Optimization
from shared.registry import Version
from support.processing import artifact, classification, embedder, embedding, template_matcher, tokenizer_json


@pytest.fixture
def settings(tmp_path):
    return OptimizerSettings(instance="o", scratch_dir=tmp_path, run_timeout_s=2, job_timeout_s=60)


@pytest.fixture
def store():
    return ArtifactStore("memory://")


async def put(store, content):
    async def chunks():
        yield content

    return await store.put_stream(chunks(), limit_bytes=10**9)


async def optimized(settings, store, model, processing):
    """The last event of the job."""
    held = await put(store, model.content)
    about = {"attempt": 1, "owner": "o/1", "processing": processing, "optimization": Optimization(candidates=())}
    version = Version("m", 1, "u", held, "onnx", None, 0, state="optimizing", **about)

    async def nobody(_):
        pass

    *_, last = await Jobs(settings, store, Sandbox(settings), Means).run(Task(version), Hooks(nobody, nobody))
    return last


def with_regex(pattern):
    hostile = json.loads(tokenizer_json())
    hostile["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return json.dumps(hostile).encode()


async def test_steps_that_fit_are_ready_with_their_model(settings, store):
    declared = embedding(await put(store, tokenizer_json()))
    assert isinstance(await optimized(settings, store, embedder(), declared), ev.ModelReady)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{}", "The tokenizer does not work"),
        (b"\xff\xfe", "The tokenizer does not work"),
        (with_regex("(a+)+$"), "The tokenizer does not work: Onig: Regex search error: retry-limit-in-match over"),
        (with_regex("("), "The tokenizer does not work"),
    ],
    ids=["empty", "bytes", "explodes", "no regex"],
)
async def test_a_tokenizer_that_does_not_work_rejects_the_upload(settings, store, content, words):
    event = await optimized(settings, store, embedder(), embedding(await put(store, content)))
    assert isinstance(event, ev.ModelRejected)
    assert event.code == "tokenizer_unusable"
    assert words in event.reason
    assert event.reason.endswith(f"{ADVICE[event.code]}.")


async def test_a_tokenizer_that_is_not_there_rejects_the_upload(settings, store):
    held = await put(store, tokenizer_json())
    missing = replace(held, uri=held.uri.replace(held.sha256[2:], "0" * 62))
    event = await optimized(settings, store, embedder(), embedding(missing))
    assert event.code == "artifact_not_found"


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (classification(("a", "b", "c"), side=9), "decode_image: gives rows of [81], but 'x' is ['batch', 64]"),
        (embedding(artifact(b"x"), ids="ids"), "tokenize: the model has no input 'ids'; it takes ['x']"),
    ],
)
async def test_steps_that_do_not_fit_reject_the_upload(settings, store, steps, words):
    if steps.artifacts:  # as the store really holds it
        held = await put(store, tokenizer_json())
        steps = replace(steps, preprocessing=(replace(steps.preprocessing[0], tokenizer=held),))
    event = await optimized(settings, store, template_matcher(np.eye(3, 64)), steps)
    assert (event.code, words in event.reason) == ("processing_mismatch", True), event.reason


async def test_a_file_of_labels_that_is_none_rejects_the_upload(settings, store):
    declared = classification(await put(store, b"\xff\xfe"))
    event = await optimized(settings, store, template_matcher(np.eye(3, 64)), declared)
    assert event.code == "processing_mismatch"
    assert event.reason.startswith("the file of labels is not UTF-8 text. ")
