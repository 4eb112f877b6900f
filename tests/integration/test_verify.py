"""Verify, on real Kafka and Redis: what holds, and what is broken is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace

from services.audit import archive_reader, signing, tables
from services.audit.layout import decode_manifest
from services.audit.settings import AuditSettings
from services.audit.store import ArchiveStore
from services.audit.verify.run import verify
from services.worker.settings import WorkerSettings
from shared import topics
from shared.outcomes import OutcomeWriter
from support.archive import archived_up_to
from support.facts import encoded, receipt
from support.processes import service
from support.served import serving

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("apache_kafka")]
REQUESTS = 60


@pytest.fixture
async def archived(backbone):
    """A model's requests, all answered and archived, in Kafka and the archive both; what it was served by has ended."""
    settings = backbone.settings(WorkerSettings, threads=1)
    shared = {"topic_prefix": settings.topic_prefix, "artifact_store_url": settings.artifact_store_url}
    audit = backbone.settings(AuditSettings, audit_interval_s=0.2, audit_segment_rows=8, **shared)
    async with serving(settings, backbone.model()) as served:
        with service("audit", audit, None):
            await served.ask(REQUESTS)
            ends = await served.ends()
            await archived_up_to(audit, ends)
        yield audit, served, ends


async def broken(settings, **asked) -> list[tuple[str, str, str]]:
    report = (await verify(settings, **asked)).as_map()
    return [(each["link"], each["where"], each["why"]) for each in report["broken"]]


def path_of(settings, key: str) -> Path:
    return Path(urlsplit(settings.artifact_store_url).path) / key


async def some_file(settings, kind):
    """The manifest and file of some segment, with its rows."""
    store = ArchiveStore(settings.artifact_store_url)
    [log] = await archive_reader.logs_of(store, settings.topics.name(topics.OUTCOMES))
    partition = (await archive_reader.partitions_of(store, log))[0]
    manifest = [each async for each in archive_reader.manifests(store, log, partition)][1]
    [file] = [file for file in manifest.files if file.kind == kind]
    return store, manifest, file, list(tables.decode(file.schema, await store.get(file.key)))


async def rewrite(settings, store, manifest, file, rows) -> None:
    """Change a file as somebody would who also mends its manifest."""
    content = tables.encode(file.schema, rows)
    path_of(settings, file.key).write_bytes(content)
    mended = replace(file, sha256=hashlib.sha256(content).hexdigest(), byte_size=len(content), rows=len(rows))
    files = tuple(mended if each == file else each for each in manifest.files)
    key = manifest.log.manifest(manifest.partition, manifest.first)
    await store.put(key, replace(manifest, files=files).encode())


async def test_all_holds_from_kafka_from_the_archive_and_from_both(archived):
    settings, served, _ = archived
    for asked in ({"archive": False}, {"kafka": False}, {}):
        report = (await verify(settings, **asked)).as_map()
        assert report["ok"], report
        counts = report["counts"]
        if asked != {"archive": False}:
            assert counts["requests"] == counts["results"] == counts["outcomes_accepted"] == REQUESTS
        if asked != {"kafka": False}:
            assert counts["kafka_requests"] == counts["redis_results"] == REQUESTS
    assert counts["kafka_segments_compared"] > 4
    key = signing.load(settings.audit_key_path).public_key
    assert await broken(settings, kafka=False, keys=frozenset([key])) == []
    links = {link for link, _, _ in await broken(settings, kafka=False, keys=frozenset(["00" * 32]))}
    assert links == {"checkpoint"}

    # A request that was passed over by the workers: somebody moved the group's offsets.
    partition, offset = await served.rig.send(served.model, b"{}", partition=0, ce_id="passed-over")
    ((_, last),) = [await served.rig.send(served.model, b"{}", partition=0, ce_id="answered")]
    assert (partition, last) == (0, offset + 1)
    await served.rig.outcomes(served.model, REQUESTS + 2)
    assert await broken(settings, archive=False) == []


async def test_what_was_changed_is_named(archived):
    settings, served, ends = archived
    store, manifest, file, rows = await some_file(settings, "records")
    where = f"{manifest.log} p{manifest.partition} [{manifest.first}, {manifest.next})"
    original = path_of(settings, file.key).read_bytes()
    manifest_key = manifest.log.manifest(manifest.partition, manifest.first)
    manifest_before = await store.get(manifest_key)

    path_of(settings, file.key).write_bytes(original[:-1] + b"x")
    link, place, why = (await broken(settings, kafka=False))[0]
    assert (link, place) == ("file", file.key)
    assert "SHA-256" in why

    changed = [*rows]
    changed[2] = rows[2] | {"value": rows[2]["value"].replace(b"succeeded", b"cancelled")}
    await rewrite(settings, store, manifest, file, changed)
    assert ("chain", where) in [found[:2] for found in await broken(settings, kafka=False)]
    path_of(settings, file.key).unlink()
    assert ("file", file.key, "it is missing") in await broken(settings, kafka=False)
    path_of(settings, file.key).write_bytes(original)
    await store.put(manifest_key, manifest_before)

    store, manifest, file, rows = await some_file(settings, "exchanges")
    original = path_of(settings, file.key).read_bytes()
    at = f"{served.topic}/{rows[1]['request_partition']} offset {rows[1]['request_offset']}"
    changed = [rows[0], rows[1] | {"request_value": rows[1]["request_value"] + b" "}, *rows[2:]]
    await rewrite(settings, store, manifest, file, changed)
    found = await broken(settings, kafka=False)
    assert ("request", at, "its bytes are not those of the receipt's input_sha256") in found
    path_of(settings, file.key).write_bytes(original)
    await store.put(manifest_key, manifest_before)
    assert await broken(settings, kafka=False) == []

    # The tail cut off: manifests and checkpoints of a partition's last segments are gone.
    partition, end = manifest.partition, ends[manifest.partition]
    kept = signing.decode_checkpoint(await store.get(manifest.log.checkpoint(partition, end)))
    last = (await archive_reader.segments(store, manifest.log, partition))[-1]
    await store.delete(last.log.manifest(partition, last.first))
    assert [link for link, _, _ in await broken(settings, kafka=False)] == ["checkpoint"]
    await store.delete(manifest.log.checkpoint(partition, end))
    assert await broken(settings, kafka=False) == []
    [(link, _, why)] = await broken(settings, kafka=False, known=[kept])
    assert link == "checkpoint"
    assert "the tail is missing" in why


async def test_kafka_is_held_against_the_archive_and_a_request_without_outcome_is_found(archived, backbone):
    settings, served, _ = archived
    store, manifest, _, _ = await some_file(settings, "records")
    key = manifest.log.manifest(manifest.partition, manifest.first)
    content = decode_manifest(await store.get(key))
    assert content.gaps == ()

    # An outcome beyond the next request: a reader accepts it, and the request below it can have none any more.
    model = backbone.model()
    await served.rig.ensure(model)
    for _ in range(3):
        await served.rig.send(model, b"{}", partition=1)
    topic = settings.topics.requests(model)
    async with OutcomeWriter(settings) as writer:
        empty = hashlib.sha256(b"{}").hexdigest()
        for offset in (0, 2):
            outcome = receipt(offset, topic=topic, partition=1, model_name=model, input_sha256=empty, status="failed")
            await writer.append(topic, 1, encoded([outcome]))
    found = await broken(settings, archive=False)
    assert ("completeness", f"{topic}/1 offsets [1]", "1 request(s) have no outcome") in found
    with service("audit", settings, None):
        await archived_up_to(settings, await served.ends())
    found = await broken(settings, kafka=False)
    assert found == [("completeness", f"{topic}/1 offsets 1 to 1", "1 request(s) have no outcome")]
    assert json.dumps(found)
