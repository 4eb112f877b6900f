"""A copy of the store: all that its archive names, whatever happens meanwhile; brought up to date, not made anew."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest

from services.audit.backup import Copied, backup
from services.audit.erase import Erasure, erase
from services.audit.store import ArchiveStore
from services.audit.verify.run import verify
from shared.artifacts import ArtifactStore
from shared.errors import InvalidInput
from support.archived import archived

if TYPE_CHECKING:
    from pathlib import Path


async def _chunks(*parts):
    for part in parts:
        yield part


@pytest.fixture
def there(tmp_path):
    """An archive with an object beside it; what is under way, and what a replay left."""
    made = archived(tmp_path)
    store = ArtifactStore(made.settings.artifact_store_url)
    asyncio.run(store.put_stream(_chunks(b"model"), limit_bytes=9))
    asyncio.run(store.put_stream(_chunks(b"replayed"), limit_bytes=9, area="replays"))
    (tmp_path / "store" / "incoming").mkdir(exist_ok=True)
    (tmp_path / "store" / "incoming" / "half").write_bytes(b"half")
    return made


def files(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def copy(made, tmp_path, name="copy") -> Copied:
    return asyncio.run(backup(made.settings.artifact_store_url, (tmp_path / name).as_uri()))


def holds(made, tmp_path, name="copy") -> bool:
    settings = made.settings.model_copy(update={"artifact_store_url": (tmp_path / name).as_uri()})
    return asyncio.run(verify(settings, kafka=False)).ok


def test_a_copy_has_everything_that_lasts_and_the_next_one_only_what_is_new(there, tmp_path):
    done = copy(there, tmp_path)
    lasting = {k: v for k, v in files(tmp_path / "store").items() if not k.startswith(("incoming/", "replays/"))}
    assert files(tmp_path / "copy") == lasting
    assert (done.objects, done.files, done.there) == (1, len(lasting) - 1, 0)
    assert done.byte_size == sum(map(len, lasting.values()))
    assert holds(there, tmp_path)
    there.add(12)
    there.write()
    again = copy(there, tmp_path)
    assert (again.objects, again.files, again.there) == (0, 4, len(lasting))  # records, exchanges, manifest, checkpoint
    assert holds(there, tmp_path)


def test_an_interrupted_copy_holds_whenever_it_was_interrupted(there, tmp_path):
    """Objects are put one after the other; after each the copy is looked at."""

    async def watch():
        source, to = there.settings.artifact_store_url, (tmp_path / "copy").as_uri()
        settings = there.settings.model_copy(update={"artifact_store_url": to})
        seen = []

        async def put(self, key, content, original=ArchiveStore.put):
            await original(self, key, content)
            seen.append((await verify(settings, kafka=False)).as_map())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ArchiveStore, "put", put)
            await backup(source, to)
        return seen

    seen = asyncio.run(watch())
    assert len(seen) == 12
    assert [report["broken"] for report in seen if not report["ok"]] == []


def test_what_was_erased_leaves_the_copy_and_what_was_lost_does_not(there, tmp_path):
    copy(there, tmp_path)
    before = files(tmp_path / "copy")
    assert asyncio.run(erase(there.store, Erasure("m", frozenset(["r5"])))) == 1
    records = min((tmp_path / "store").rglob("records/*.parquet"))
    records.unlink()  # by accident
    done = copy(there, tmp_path)
    after = files(tmp_path / "copy")
    [gone] = before.keys() - after.keys()
    assert "/exchanges/" in gone
    assert done.removed == 1
    assert records.relative_to(tmp_path / "store").as_posix() in after
    assert holds(there, tmp_path)


def test_an_erasure_in_the_middle_of_a_copy_is_in_it(there, tmp_path):
    get, erased = ArchiveStore.get, []

    async def get_after_an_erasure(self, key, **about):
        if key.endswith(".parquet") and not erased:
            erased.append(key)
            await erase(there.store, Erasure("m", frozenset(f"r{n}" for n in range(12))))
        return await get(self, key, **about)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArchiveStore, "get", get_after_an_erasure)
        copy(there, tmp_path)
    assert erased
    assert holds(there, tmp_path)


def test_damage_is_named_and_not_copied(there, tmp_path):
    damaged = [
        next((tmp_path / "store").rglob("exchanges/*/*/*.parquet")),
        next((tmp_path / "store" / "sha256").rglob("*/*")),
    ]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    done = copy(there, tmp_path)
    names = {path.relative_to(tmp_path / "store").as_posix() for path in damaged}
    assert set(done.damaged) == names
    assert not names & files(tmp_path / "copy").keys()
    assert not holds(there, tmp_path)


def test_a_store_is_not_its_own_copy(there):
    url = there.settings.artifact_store_url
    with pytest.raises(InvalidInput):
        asyncio.run(backup(url, url + "/"))


def test_names_of_the_store_that_was_copied_are_found_in_the_copy(there, tmp_path):
    store = ArtifactStore(there.settings.artifact_store_url)
    artifact = asyncio.run(store.put_stream(_chunks(b"model"), limit_bytes=9))
    copy(there, tmp_path)
    shutil.rmtree(tmp_path / "store")
    assert asyncio.run(ArtifactStore((tmp_path / "copy").as_uri()).get_bytes(artifact)) == b"model"
