"""What leaves the store: files of candidates that nothing names, and no others."""

from __future__ import annotations

import hashlib

import pytest

from services.optimizer.settings import OptimizerSettings
from services.optimizer.sweeping import sweep, unneeded
from shared import events as ev
from shared.artifacts import Artifact, ArtifactStore
from shared.errors import ArtifactNotFound
from shared.registry import Entry, Registry, fold
from shared.signature import Signature

ATTEMPT = {"model": "m", "version": 1, "attempt": 1, "owner": "o/1"}


def artifact(text, uri="memory://sha256/{}"):
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Artifact(uri=uri.format(sha256), sha256=sha256, byte_size=len(text))


def finished(name, stored, **fields):
    key = hashlib.sha256(f"key of {name}".encode()).hexdigest()
    return ev.StepFinished(
        **{**ATTEMPT, **fields}, step=name, key=key, result=artifact(f"result of {name}"), file=stored(name)
    )


def kept(name, stored, parent="model", **fields):
    made_of = ev.Provenance(parent_sha256=stored(parent).sha256, recipe=name)
    return ev.VariantReady(
        **{**ATTEMPT, **fields},
        variant=name,
        artifact=stored(name),
        signature=Signature(inputs=(), outputs=()),
        batch_cap=1,
        measurements=ev.Measurements(),
        provenance=made_of,
    )


def ended(stored=artifact, *, until=None):
    """Of these steps `int8` is kept, which was made from `pruned`; `int4` and a state of a training are not."""
    told = [
        ev.ModelUploaded(model="m", upload_id="u", artifact=stored("model")),
        ev.OptimizationClaimed(**ATTEMPT),
        *(finished(name, stored) for name in ("fp32", "int4", "pruned", "pruned.3", "int8")),
        kept("fp32", stored),
        kept("int8", stored, parent="pruned"),
        ev.VariantRejected(**ATTEMPT, variant="int4", reason="worse"),
        ev.ModelReady(**ATTEMPT, variant="int8", reason="r"),
    ]
    return told[:until]


def registry_of(told):
    registry = Registry()
    for offset, event in enumerate(told):
        registry = fold(registry, Entry(offset, offset, event))
    return registry


def names(registry, *possible):
    digests = {each.sha256 for each in unneeded(registry)}
    return {name for name in possible if artifact(name).sha256 in digests}


ALL = ("model", "fp32", "int4", "pruned", "pruned.3", "int8")


def test_rejected_candidates_and_states_of_trainings_that_ended():
    assert names(registry_of(ended()), *ALL) == {"int4", "pruned.3"}
    assert len(unneeded(registry_of(ended()))) == 2


def test_nothing_of_a_version_that_is_worked_on_or_was_ended_early():
    assert unneeded(registry_of(ended(until=-1))) == []
    cancelled = [*ended(until=-1), ev.OptimizationCancelled(model="m", version=1)]
    assert unneeded(registry_of(cancelled)) == []


def test_a_retired_version_keeps_what_served():
    retired = [*ended(), ev.ModelRetired(model="m", version=1)]
    assert names(registry_of(retired), *ALL) == {"int4", "pruned.3"}


def test_what_anything_else_names_stays():
    """Another model's upload, or a step of a version that goes on."""
    other = ev.ModelUploaded(model="other", upload_id="u", artifact=artifact("int4"))
    assert names(registry_of([*ended(), other]), *ALL) == {"pruned.3"}
    begun = [
        ev.ModelUploaded(model="n", upload_id="u", artifact=artifact("model")),
        ev.OptimizationClaimed(**ATTEMPT | {"model": "n"}),
        finished("int4", artifact, model="n"),
    ]
    assert names(registry_of([*ended(), *begun]), *ALL) == {"pruned.3"}


@pytest.mark.parametrize("old_enough", [True, False])
async def test_what_has_lain_there_for_long_enough_goes_and_nothing_else(tmp_path, old_enough):
    store = ArtifactStore(tmp_path.as_uri())

    async def put(name):
        async def chunks():
            yield name.encode()

        return await store.put_stream(chunks(), limit_bytes=100)

    stored = {name: await put(name) for name in ALL if name != "pruned.3"}  # as if it had been swept before
    stored["pruned.3"] = artifact("pruned.3", (tmp_path / "sha256").as_uri() + "/00/{:.62}")
    registry, gone = registry_of(ended(stored.__getitem__)), set()
    settings = OptimizerSettings(sweep_after_s=0 if old_enough else 3600)
    assert await sweep(settings, store, registry, gone) == (1 if old_enough else 0)
    assert await sweep(settings, store, registry, gone) == 0
    for name in {*stored} - {"int4", "pruned.3"}:
        await store.check_there(stored[name])
    if old_enough:
        with pytest.raises(ArtifactNotFound):
            await store.check_there(stored["int4"])
    else:
        await store.check_there(stored["int4"])
