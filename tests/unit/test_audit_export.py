"""The exported bundle: the script in it needs nothing but Python, and names whatever was done to an outcome."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import json
import shutil
import subprocess
import sys
import zipfile

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from services.audit import chain
from services.audit.commands import checkpoints
from services.audit.export import verify_script
from services.audit.export.bundle import export
from services.audit.records import Selection
from shared.artifacts import ArtifactStore
from shared.codec import encode_event, pack
from shared.errors import UnknownRequest
from support.archived import T0_MS, archived
from support.facts import made_ready, receipt, uploaded

VECTORS = json.loads((verify_script.Path(verify_script.__file__).parent / "vectors.json").read_text())
MODEL_FILE = b"the model's file"


def stored(audit, content):
    async def pieces():
        yield content

    return asyncio.run(ArtifactStore(audit.artifact_store_url).put_stream(pieces(), limit_bytes=len(content)))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("export")
    made = archived(directory, 12)
    artifact = stored(made.settings, MODEL_FILE)
    for event in (uploaded(), *made_ready()):
        made.add_event(event, T0_MS)
    for offset in range(12, 16):
        made.add(offset, artifact_sha256=artifact.sha256)
    made.write()
    asyncio.run(export(made.settings, Selection(model="m"), directory / "bundle"))
    return made, directory / "bundle", artifact


@pytest.fixture
def bundle(source, tmp_path):
    return shutil.copytree(source[1], tmp_path / "bundle")


def run(bundle, *arguments):
    """The script as an auditor runs it: by a Python that sees no package, neither ours nor any other."""
    command = [sys.executable, "-I", "-S", str(bundle / "verify.py"), "--json", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return process.returncode, json.loads(process.stdout) if process.stdout else process.stderr


def log_of(bundle):
    return next((bundle / "logs").glob("outcomes-*.jsonl"))


def lines_of(bundle):
    return [json.loads(line) for line in log_of(bundle).read_text().splitlines()]


def rewrite(bundle, lines):
    log_of(bundle).write_text("".join(json.dumps(line) + "\n" for line in lines))


def named(bundle, *arguments):
    """What is broken of the log, besides that a file was changed."""
    code, found = run(bundle, *arguments)
    assert code == 1, found
    return [each for each in found["broken"] if not each.startswith("file ")]


def test_an_untouched_bundle_holds(source, bundle, tmp_path):
    made, _, artifact = source
    code, found = run(bundle)
    assert (code, found["broken"]) == (0, [])
    assert found["counts"]["requests present"] == found["counts"]["results present"] == 16
    assert found["counts"]["outcomes"] == 16
    assert found["counts"]["sealed"] == found["counts"]["checkpoints"] == 5
    assert any("public key is the bundle's own" in note for note in found["notes"])
    assert run(bundle, "--public-key", made.signer.public_key)[0] == 0
    assert (bundle / "objects" / artifact.sha256).read_bytes() == MODEL_FILE
    assert "is signed by another key" in named(bundle, "--public-key", "00" * 32)[0]

    out = tmp_path / "bundle.zip"
    asyncio.run(export(made.settings, Selection(model="m", since_ms=T0_MS + 9000), out))
    zipfile.ZipFile(out).extractall(tmp_path / "unzipped")
    code, found = run(tmp_path / "unzipped")
    assert (code, found["broken"]) == (0, [])
    assert 0 < found["counts"]["requests present"] < 16
    with pytest.raises(UnknownRequest):
        asyncio.run(export(made.settings, Selection(model="another"), tmp_path / "none"))


def test_each_modified_outcome_is_named(bundle):
    original = lines_of(bundle)
    for number in (0, 5, len(original) - 1):
        lines = copy.deepcopy(original)
        value = base64.b64decode(lines[number]["value"]).replace(b"worker-1", b"worker-2")
        lines[number]["value"] = base64.b64encode(value).decode()
        rewrite(bundle, lines)
        broken = named(bundle)
        assert any(f"offset {lines[number]['offset']} was modified" in each for each in broken), broken
        assert sum("was modified" in each for each in broken) == 1


def test_each_deleted_outcome_is_named(bundle):
    original = lines_of(bundle)
    for number in (0, 7, len(original) - 2):
        rewrite(bundle, original[:number] + original[number + 1 :])
        broken = named(bundle)
        offset = original[number]["offset"]
        assert any(f"offset {offset} was deleted (up to {offset})" in each for each in broken), broken


def test_each_inserted_outcome_is_named(bundle):
    original = lines_of(bundle)
    forged = copy.deepcopy(original[3])
    forged["value"] = base64.b64encode(encode_event(receipt(99, topic="t.requests.m"))).decode()
    for number in (1, 6, len(original)):
        at = original[number - 1]["offset"]
        rewrite(bundle, [*original[:number], forged | {"offset": at + 1}, *original[number:]])
        assert any(f"offset {at + 1} was inserted" in each or f"offset {at + 1} was modified" in each
                   for each in named(bundle))  # fmt: skip
    # One that brings the head that it would have.
    head = bytes.fromhex(original[5]["head"])
    proper = forged | {"offset": original[6]["offset"]}
    proper["head"] = chain.link(head, base64.b64decode(proper["key"]), base64.b64decode(proper["value"])).hex()
    rewrite(bundle, [*original[:6], proper, *original[6:]])
    assert any(f"offset {proper['offset']} was inserted" in each for each in named(bundle))
    # The same line twice.
    rewrite(bundle, [*original[:6], original[5], *original[6:]])
    assert any(f"offset {original[5]['offset']} was inserted" in each for each in named(bundle))


def test_each_reordered_outcome_is_named(bundle):
    original = lines_of(bundle)
    for one, other in ((2, 3), (4, 9)):
        lines = [*original]
        lines[one], lines[other] = lines[other], lines[one]
        rewrite(bundle, lines)
        broken = named(bundle)
        assert any(f"offset {original[one]['offset']} was reordered" in each for each in broken), broken
        assert not any("deleted" in each or "modified" in each for each in broken), broken
    moved = [*original[:3], *original[4:10], original[3], *original[10:]]
    rewrite(bundle, moved)
    reordered = [each for each in named(bundle) if "reordered" in each]
    assert reordered == [each for each in reordered if f"offset {original[3]['offset']} was" in each]
    assert reordered


def test_a_tail_that_was_cut_off_shows_by_its_checkpoint_or_by_one_that_was_kept(source, bundle, tmp_path):
    made, _, _ = source
    kept = tmp_path / "kept.jsonl"
    kept.write_text("".join(json.dumps(each) + "\n" for each in asyncio.run(checkpoints(made.settings))))
    rewrite(bundle, lines_of(bundle)[:-2])
    assert any("the tail is cut off" in each for each in named(bundle))

    # With its checkpoint and all that speaks of it: only who kept a checkpoint sees it.
    lines = lines_of(bundle)
    statements = [json.loads(line) for line in (bundle / "checkpoints.jsonl").read_text().splitlines()]
    end = lines[-1]["offset"] + 1
    left = [
        each for each in statements if json.loads(each["statement"])["offset"] <= end or "models" in each["statement"]
    ]
    assert len(left) == len(statements) - 1
    (bundle / "checkpoints.jsonl").write_text("".join(json.dumps(each) + "\n" for each in left))
    about = json.loads((bundle / "bundle.json").read_text())
    about["logs"][0]["next"] = end
    rows = (bundle / "exchanges.jsonl").read_text().splitlines()
    gone = {base64.b64decode(line["value"]) for line in lines}
    rows = rows[: sum(1 for line in lines if line["verdict"] == "accepted")]
    assert gone
    about["selected"] = about["selected"][: len(rows)]
    (bundle / "exchanges.jsonl").write_text("".join(row + "\n" for row in rows))
    (bundle / "bundle.json").write_text(json.dumps(about))
    (bundle / "files.json").write_text("{}")
    assert run(bundle)[0] == 0
    assert any("the tail is cut off" in each for each in named(bundle, "--checkpoint", str(kept)))


def test_whoever_computes_all_heads_anew_is_betrayed_by_the_checkpoint(bundle):
    lines, head = lines_of(bundle), bytes(32)
    value = base64.b64decode(lines[5]["value"]).replace(b"worker-1", b"worker-2")
    lines[5]["value"] = base64.b64encode(value).decode()
    for line in lines:
        head = chain.link(head, base64.b64decode(line["key"]), base64.b64decode(line["value"]))
        line["head"] = head.hex()
    rewrite(bundle, lines)
    broken = named(bundle)
    assert any("are not those that were sealed" in each for each in broken)


def test_requests_results_and_objects_are_held_against_the_receipts(source, bundle):
    original = (bundle / "exchanges.jsonl").read_text()
    rows = [json.loads(line) for line in original.splitlines()]
    where = f"{rows[2]['topic']}/{rows[2]['partition']} offset {rows[2]['offset']}"

    def with_row(**changed):
        some = [*rows[:2], rows[2] | changed, *rows[3:]]
        (bundle / "exchanges.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        return named(bundle)

    assert with_row(value=base64.b64encode(b"{}").decode()) == [
        f"request {where}: its bytes are not those of its receipt"
    ]
    output = rows[2]["outputs"][0] | {"data": base64.b64encode(b"\1" * 8).decode()}
    assert with_row(outputs=[output]) == [f"result {where}: it is not that of its receipt"]
    assert f"request {where.replace('offset 2', 'offset 77')}: no outcome, or there twice" in with_row(offset=77)
    (bundle / "exchanges.jsonl").write_text(original)
    (bundle / "objects" / source[2].sha256).write_bytes(b"another")
    code, found = run(bundle)
    assert (code, found["broken"]) == (1, [f"file objects/{source[2].sha256}: it was changed after the export"])
    (bundle / "bundle.json").unlink()
    assert run(bundle)[0] == 2


# ------------------------------------------------------------------ the parts of the script


def test_vectors():
    head = bytes(32)
    for each in VECTORS["chain"]:
        key, value = (None if each[name] is None else base64.b64decode(each[name]) for name in ("key", "value"))
        assert chain.link(head, key, value) == verify_script.link(head, key, value)
        head = chain.link(head, key, value)
        assert head.hex() == each["head"]
    for each in VECTORS["ed25519_rfc8032_7.1"]:
        key, message, signature = (bytes.fromhex(each[name]) for name in ("public_key", "message", "signature"))
        assert verify_script.signed(key, message, signature)
        assert not verify_script.signed(key, message + b"x", signature)
        for broken in (signature[:-1], signature[::-1], bytes(64), signature[:32] + b"\xff" * 32):
            assert not verify_script.signed(key, message, broken)
        assert not verify_script.signed(bytes(31), message, signature)


@settings(max_examples=15)
@given(st.binary(max_size=100))
def test_signatures_are_those_of_cryptography(message):
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = key.public_key().public_bytes_raw()
    assert verify_script.signed(public, message, key.sign(message))
    assert not verify_script.signed(public, message + b"\0", key.sign(message))


documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=20),
    max_leaves=50,
)


@settings(max_examples=40)
@given(documents)
def test_msgpack_is_read_as_it_was_written(document):
    assert verify_script.unpack(pack(document)) == document


@given(st.binary(max_size=50))
def test_msgpack_that_is_none_is_unreadable_and_nothing_else(data):
    with contextlib.suppress(verify_script.Unreadable):
        verify_script.unpack(data)
