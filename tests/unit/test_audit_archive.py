"""The archive without Kafka: what is written is read back, verified, expired, erased and explained."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from services.audit import archive_reader, archive_source, erase, explain, retention, signing
from services.audit.erase import Erasure
from services.audit.layout import newest, places
from services.audit.records import RecordedRequest, Selection
from services.audit.segment import Segment
from services.audit.store import ArchiveStore
from services.audit.verify.run import verify
from services.audit.writer import Lane
from shared.artifacts import ArtifactStore
from shared.errors import ArtifactNotFound, Conflict, InvalidInput, UnknownRequest
from shared.events import ModelPromoted, TrafficSplit
from support.archived import T0_MS, archive, archived, outputs_of, value_of
from support.facts import made_ready, uploaded


def report_of(made, **asked):
    return asyncio.run(verify(made.settings, kafka=False, **asked)).as_map()


def outcomes_of(made, **selected):
    async def read():
        async with archive_source.open_source(made.settings) as source:
            return [outcome async for outcome in source.outcomes(Selection(**selected))]

    return asyncio.run(read())


def test_what_is_written_is_read_back(tmp_path):
    made = archived(tmp_path)
    found = outcomes_of(made)
    assert [outcome.receipt.request.offset for outcome in found] == list(range(12))
    for outcome in found:
        offset = outcome.receipt.request.offset
        assert outcome.receipt == made.receipt(offset)
        assert isinstance(outcome.request, RecordedRequest)
        assert (outcome.request.value, outcome.request.headers) == (value_of(offset), (("ce_id", b"r%d" % offset),))
        assert outcome.result.outputs == outputs_of(offset)
    assert [o.receipt.request_id for o in outcomes_of(made, tenant="odd", since_ms=T0_MS + 6000)] == [
        "r5",
        "r7",
        "r9",
        "r11",
    ]
    assert outcomes_of(made, model="another") == []
    report = report_of(made)
    assert report["ok"], report
    assert report["counts"]["outcomes_repeat"] == 1
    assert report["counts"]["checkpoints"] == 3


def test_a_segment_is_committed_once_and_a_crash_before_its_manifest_leaves_nothing(tmp_path):
    made = archived(tmp_path, 4)
    store = made.store

    async def second():
        """Another archiver, that stands where the first segment began."""
        lane = Lane(made.lane.log, 0, Segment(0, 0))
        other = archive(tmp_path)
        other.lane = lane
        other.add(0)
        with pytest.raises(Conflict):
            await other.writer.write(lane)

    asyncio.run(second())
    assert report_of(made)["ok"]
    orphans = [key for key in asyncio.run(store.keys("audit/")) if key.endswith(".parquet")]
    named = [file.key for m in asyncio.run(manifests(store, made)) for file in m.files]
    assert len(orphans) == 4
    assert len(named) == 2
    assert asyncio.run(retention.sweep(store, datetime.now(UTC))) == []
    removed = asyncio.run(retention.sweep(store, datetime.now(UTC) + timedelta(hours=2)))
    assert sorted(removed) == sorted(set(orphans) - set(named))
    assert report_of(made)["ok"]


def test_what_replays_left_goes_after_a_day_and_nothing_else_does(tmp_path):
    made = archived(tmp_path, 4)
    artifacts = ArtifactStore(made.settings.artifact_store_url)

    async def some():
        yield b"a large value"

    left = asyncio.run(artifacts.put_stream(some(), limit_bytes=99, area="replays"))
    kept = asyncio.run(artifacts.put_stream(some(), limit_bytes=99))  # of the same bytes
    before = asyncio.run(made.store.keys(""))
    now = datetime.now(UTC)
    assert asyncio.run(retention.sweep_replays(made.store, now + timedelta(hours=23))) == []
    assert asyncio.run(artifacts.get_bytes(left)) == b"a large value"
    [gone] = asyncio.run(retention.sweep_replays(made.store, now + timedelta(hours=25)))
    assert left.uri.endswith(gone)
    assert set(before) - set(asyncio.run(made.store.keys(""))) == {gone}
    assert asyncio.run(artifacts.get_bytes(kept)) == b"a large value"
    with pytest.raises(ArtifactNotFound):
        asyncio.run(artifacts.get_bytes(left))


async def manifests(store, made):
    return [m async for m in archive_reader.manifests(store, made.lane.log, 0)]


def test_erased_requests_are_gone_and_verify_says_so(tmp_path):
    made = archived(tmp_path)
    bytes_before = b"".join(path.read_bytes() for path in tmp_path.rglob("*.parquet"))
    assert b"r5" in bytes_before
    assert asyncio.run(erase.erase(made.store, Erasure("m", frozenset(["r5"])))) == 1
    assert asyncio.run(erase.erase(made.store, Erasure("m", tenant="even"))) == 6
    assert asyncio.run(erase.erase(made.store, Erasure("m", tenant="even"))) == 0
    assert asyncio.run(erase.erase(made.store, Erasure("another", tenant="even"))) == 0
    found = outcomes_of(made)
    for outcome in found:
        gone = outcome.receipt.tenant == "even" or outcome.receipt.request_id == "r5"
        assert (outcome.request == "erased") == (outcome.result == "erased") == gone
    report = report_of(made)
    assert report["ok"], report
    assert report["counts"]["requests_erased"] == report["counts"]["results_erased"] == 7
    assert report["counts"]["requests"] == 5
    with pytest.raises(InvalidInput):
        Erasure("m")
    assert len(places(asyncio.run(made.store.keys("audit/")))) > len(
        newest(places(asyncio.run(made.store.keys("audit/"))))
    )


def test_a_request_called_erased_that_nobody_erased_is_broken(tmp_path):
    made = archive(tmp_path)
    made.add(0, request="erased", result="erased")
    made.add(1, result="missing")
    made.add(2, request="expired", result="expired")
    made.write()
    broken = {(each["link"], each["why"]) for each in report_of(made)["broken"]}
    assert ("request", "it is called erased, and no revision of its manifest says so") in broken
    assert ("result", "it is missing") in broken
    assert len(broken) == 3


def test_retention_is_by_model_and_receipts_stay(tmp_path):
    made = archived(tmp_path)
    day = datetime.fromtimestamp(T0_MS / 1000, UTC).date()

    def expire(days, today):
        return asyncio.run(retention.expire(made.store, days, today))

    assert expire({"m": 30}, day + timedelta(days=30)) == []
    assert expire({"x": 1}, day + timedelta(days=300)) == []
    assert expire({}, day + timedelta(days=300)) == []
    assert len(expire({"*": 5, "m": 30}, day + timedelta(days=31))) == 3
    assert expire({"*": 5, "m": 30}, day + timedelta(days=31)) == []
    assert {(outcome.request, outcome.result) for outcome in outcomes_of(made)} == {("expired", "expired")}
    report = report_of(made)
    assert report["ok"], report
    assert report["counts"]["expired"] == 12


def test_a_gap_in_the_requests_is_found(tmp_path):
    made = archive(tmp_path)
    for offset in (0, 1, 3):
        made.add(offset)
    made.write()
    [broken] = report_of(made)["broken"]
    assert broken == {
        "link": "completeness",
        "where": f"{made.topic}/0 offsets 2 to 2",
        "why": "the requests have no outcome",
    }


def test_only_a_trusted_key_counts(tmp_path):
    made = archived(tmp_path, 4)
    assert report_of(made, keys=frozenset([made.signer.public_key]))["ok"]
    pem = signing.public_keys(made.signer.public_key)
    assert pem == {made.signer.public_key}
    report = report_of(made, keys=frozenset(["00" * 32]))
    assert report["first_broken"]["link"] == "checkpoint"
    with pytest.raises(InvalidInput):
        signing.public_keys("not a key")


def explained(made, request_id):
    async def ask():
        async with archive_source.open_source(made.settings) as source:
            return await explain.explain(source, request_id, None)

    return asyncio.run(ask())


def test_which_version_answered_and_why(tmp_path):
    made = archive(tmp_path)
    events = [
        uploaded(),
        *made_ready(),
        uploaded(upload_id="u2"),
        *made_ready(version=2),
        ModelPromoted(model="m", version=2),
        TrafficSplit(model="m", weights={1: 50, 2: 50}),
    ]
    for number, event in enumerate(events):
        made.add_event(event, 1000 * number)
    made.add(0, registry_offset=3, model_version=1)
    made.add(1, registry_offset=8, model_version=2)
    made.add(2, registry_offset=9, model_version=1)
    made.add(3, registry_offset=8, model_version=1)
    made.add(4, registry_offset=-1, model_version=None, status="failed", output_sha256=None)
    made.write()
    first, second, third, wrong, none = (explained(made, f"r{n}")[0] for n in range(5))
    assert (first["decided_by"]["event"], first["agrees"]) == ("ModelReady", True)
    assert (second["decided_by"]["event"], second["decided_by"]["offset"]) == ("ModelPromoted", 8)
    assert second["why"] == "version 2 was the active one, by ModelPromoted"
    assert "traffic was split" in third["why"]
    assert third["decided_by"]["event"] == "TrafficSplit"
    assert wrong["agrees"] is False
    assert none["why"].startswith("no version was chosen")
    with pytest.raises(UnknownRequest):
        explained(made, "never-asked")

    async def as_of(moment):
        async with archive_source.open_source(made.settings) as source:
            return (await explain.registry_at(source, moment)).model("m").active

    assert [asyncio.run(as_of(moment)) for moment in (3000, 7999, 8000)] == [1, 1, 2]


def test_the_store_writes_once(tmp_path):
    store = ArchiveStore((tmp_path / "s").as_uri())

    async def twice():
        await store.create("audit/a", b"1")
        with pytest.raises(Conflict):
            await store.create("audit/a", b"2")
        await store.delete("audit/b")
        return await store.get("audit/a"), await store.exists("audit/b")

    assert asyncio.run(twice()) == (b"1", False)
