"""The artifact store, one set of tests for memory and files."""

from __future__ import annotations

import asyncio
import gc
import hashlib

import msgspec
import pytest

from shared import artifacts
from shared.artifacts import Artifact, ArtifactStore
from shared.errors import ArtifactNotFound, DigestMismatch, InvalidInput, StoreUnavailable, TooLarge

CONTENT = bytes(range(256)) * 50_000  # 12.8 MB: more than two parts
LIMIT = len(CONTENT)


async def chunks(content, size=1_000_000, then=None):
    for start in range(0, len(content), size):
        yield content[start : start + size]
    if then is not None:
        raise then


@pytest.fixture(params=["file", "memory"])
def store(request, tmp_path):
    return ArtifactStore(f"{tmp_path.as_uri()}/a/store/" if request.param == "file" else "memory://")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def on_disk(root):
    return ArtifactStore(root.as_uri())


def files(root):
    gc.collect()  # a writer removes its staged part when it goes; a caught exception may hold it until now
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("content", [b"", b"x", CONTENT], ids=["empty", "small", "large"])
async def test_round_trip(store, content):
    sha256 = hashlib.sha256(content).hexdigest()
    artifact = await store.put_stream(chunks(content), limit_bytes=LIMIT, expected_sha256=sha256)
    assert (artifact.sha256, artifact.byte_size) == (sha256, len(content))
    assert artifact.uri.endswith(f"/sha256/{sha256[:2]}/{sha256[2:]}")
    assert await store.exists(artifact)
    assert await store.get_bytes(artifact) == content
    view = await store.get_view(artifact)
    assert (view.readonly, bytes(view)) == (True, content)
    assert b"".join([piece async for piece in store.stream(artifact)]) == content


async def test_what_lies_under_a_digest(store):
    artifact = await store.put_stream(chunks(b"x"), limit_bytes=LIMIT)
    assert await store.named(artifact.sha256) == artifact
    with pytest.raises(ArtifactNotFound):
        await store.named("0" * 64)
    for strange in ("", "../../etc/passwd", artifact.sha256.upper(), artifact.sha256[1:]):
        with pytest.raises(InvalidInput):
            await store.named(strange)


async def test_equal_content_is_stored_once(on_disk, root):
    first, second = [await on_disk.put_stream(chunks(b"same"), limit_bytes=9) for _ in range(2)]
    assert first == second
    assert files(root) == [f"sha256/{first.sha256[:2]}/{first.sha256[2:]}"]


async def test_equal_content_at_once(store):
    both = await asyncio.gather(*(store.put_stream(chunks(CONTENT), limit_bytes=LIMIT) for _ in range(2)))
    assert both[0] == both[1]
    assert await store.get_bytes(both[0]) == CONTENT


@pytest.mark.parametrize("size", [1000, len(CONTENT)])
async def test_too_large_stops_reading_and_leaves_nothing(on_disk, root, size):
    source = chunks(CONTENT[:size], size=100)
    with pytest.raises(TooLarge, match="limit of 950 bytes"):
        await on_disk.put_stream(source, limit_bytes=950)
    assert files(root) == []


async def test_a_wrong_promise_leaves_nothing(on_disk, root):
    with pytest.raises(DigestMismatch):
        await on_disk.put_stream(chunks(CONTENT), limit_bytes=LIMIT, expected_sha256="0" * 64)
    assert files(root) == []


async def test_a_broken_upload_leaves_nothing_and_keeps_its_error(on_disk, root):
    with pytest.raises(ConnectionResetError):
        await on_disk.put_stream(chunks(CONTENT, then=ConnectionResetError()), limit_bytes=LIMIT)
    assert files(root) == []


async def test_a_cancelled_upload_leaves_nothing(on_disk, root):
    reached = asyncio.Event()

    async def stalls():
        yield CONTENT
        reached.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(on_disk.put_stream(stalls(), limit_bytes=LIMIT))
    await reached.wait()
    assert not (root / "sha256").exists()  # no reader sees a part of it
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    assert files(root) == []


async def test_damage_is_found_and_repaired_by_storing_again(on_disk, root):
    artifact = await on_disk.put_stream(chunks(CONTENT), limit_bytes=LIMIT)
    path = root / "sha256" / artifact.sha256[:2] / artifact.sha256[2:]
    for damaged in (b"!" + CONTENT[1:], CONTENT[1:]):
        path.write_bytes(damaged)
        with pytest.raises(DigestMismatch):
            await on_disk.get_bytes(artifact)
        with pytest.raises(DigestMismatch):
            async for _ in on_disk.stream(artifact):
                pass
    assert not await on_disk.exists(artifact)  # the last damage is seen by its size
    with pytest.raises(DigestMismatch):
        await on_disk.check_there(artifact)
    await on_disk.put_stream(chunks(CONTENT), limit_bytes=LIMIT)
    assert await on_disk.get_bytes(artifact) == CONTENT


async def test_missing_artifacts(store):
    artifact = await store.put_stream(chunks(b"here"), limit_bytes=9)
    gone = msgspec.structs.replace(artifact, uri=artifact.uri + "0")
    assert not await store.exists(gone)
    with pytest.raises(ArtifactNotFound):
        await store.get_bytes(gone)
    with pytest.raises(ArtifactNotFound):
        await store.check_there(gone)
    with pytest.raises(ArtifactNotFound):
        await anext(store.stream(gone))


async def test_upstream_may_choose_keys_within_the_store(on_disk, root):
    (root / "uploads").mkdir()
    (root / "uploads" / "model-1.onnx").write_bytes(b"abc")
    uri = f"{root.as_uri()}/uploads/model-1.onnx"
    artifact = Artifact(uri=uri, sha256=hashlib.sha256(b"abc").hexdigest(), byte_size=3)
    assert await on_disk.get_bytes(artifact) == b"abc"


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc/passwd",
        "http://169.254.169.254/latest",
        "s3://other/key",
        "{root}",
        "{root}/",
        "{root}x/key",
        "{root}/../secret",
        "{root}/a/../../secret",
        "{root}/%2e%2e/secret",
        "{root}/a//b",
        "{root}//etc/passwd",
        "{root}/.hidden",
        "{root}/a?b",
        "{root}/a\n",
        "secret",
    ],
)
async def test_uris_outside_the_store_are_refused(on_disk, root, uri):
    (root.parent / "secret").write_bytes(b"")
    artifact = Artifact(uri=uri.format(root=root.as_uri()), sha256=hashlib.sha256(b"").hexdigest(), byte_size=0)
    for use in (on_disk.get_bytes, on_disk.get_view, on_disk.exists, on_disk.check_there):
        with pytest.raises(InvalidInput, match="not within the configured"):
            await use(artifact)
    with pytest.raises(InvalidInput, match="not within the configured"):
        on_disk.check_within(artifact)
    with pytest.raises(InvalidInput, match="not within the configured"):
        await anext(on_disk.stream(artifact))


async def test_a_failing_store_is_unavailable(on_disk, root):
    artifact = await on_disk.put_stream(chunks(b"abc"), limit_bytes=9)
    (root / "incoming").rmdir()
    (root / "incoming").write_bytes(b"a file where a directory belongs")
    with pytest.raises(StoreUnavailable, match="incoming"):
        await on_disk.put_stream(chunks(b"def"), limit_bytes=9)
    path = root / "sha256" / artifact.sha256[:2] / artifact.sha256[2:]
    path.unlink()
    path.mkdir()
    with pytest.raises((StoreUnavailable, ArtifactNotFound)):
        await on_disk.get_bytes(artifact)


@pytest.mark.parametrize("url", ["nope://x", "no url at all", "file:///proc/none"])
def test_a_wrong_url_is_named(url):
    with pytest.raises(StoreUnavailable, match=url):
        ArtifactStore(url)


def test_root_urls_make_clean_uris():
    assert ArtifactStore("memory://")._base == ArtifactStore("memory:///")._base == "memory://"
    assert ArtifactStore("s3://bucket/prefix/")._base == "s3://bucket/prefix"


async def test_big_chunks_are_hashed_off_the_event_loop(monkeypatch, store):
    in_threads = []
    real = asyncio.to_thread

    async def recording(function, *args):
        in_threads.append(len(args[0]))
        return await real(function, *args)

    monkeypatch.setattr(artifacts.asyncio, "to_thread", recording)
    await store.put_stream(chunks(CONTENT, size=LIMIT), limit_bytes=LIMIT)
    await store.put_stream(chunks(b"small"), limit_bytes=LIMIT)
    assert in_threads == [LIMIT]


@pytest.mark.parametrize("fields", [{"sha256": "A" * 64}, {"sha256": "0" * 64 + "\n"}, {"byte_size": -1}, {"uri": ""}])
def test_an_artifact_is_well_formed(fields):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"uri": "memory:///a", "sha256": "0" * 64, "byte_size": 1} | fields, Artifact)
