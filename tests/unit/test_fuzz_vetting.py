"""Fuzzing of all that looks at uploads before a framework does: any damage ends as a typed rejection, or as vetted.

Valid files of every format are cut, overwritten, doubled and spliced. Nothing but `Rejection` may come out, within a
time and a memory that have nothing to do with what the bytes say.
"""

from __future__ import annotations

import builtins
import json
import re
import tracemalloc
import unicodedata
from functools import cache

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.optimizer.conversion import (
    architectures,
    archives,
    keras_config,
    onnx_bundle,
    pickles,
    program,
    program_archive,
    script_archive,
    weights,
)
from services.optimizer.conversion.recognise import CONFIG, recognise
from services.optimizer.rejections import ADVICE, Rejection
from services.optimizer.sandbox import signature, vet
from support import bundles, hostile, uploads

LIMIT_BYTES = 10_000_000
_MAX_PEAK_BYTES = 64 * 1024 * 1024
_MAX_S = 10_000
"""Milliseconds; most take less than one. The machine may be busy."""


def look(content):
    """All the vetting that an upload goes through before torch or TensorFlow are loaded."""
    found = recognise(content, LIMIT_BYTES)
    archive, member = found.archive, found.member
    match found.format:
        case "onnx":
            signature.read(vet.parse(content))
        case "onnx-bundle":
            made = onnx_bundle.convert(archive, member).model
            signature.read(vet.parse(made.SerializeToString()))
        case "safetensors":
            architectures.parse(archive.read(CONFIG))
            weights.read(archive.read(member))
        case "pt2":
            clean = program_archive.vetted(archive if member is None else archive.inner(member))
            assert program_archive.vetted(recognise(clean, LIMIT_BYTES).archive) == clean
        case "torchscript":
            script = archive if member is None else archive.inner(member)
            clean = script_archive.vetted(script, script_archive.takes(script, None))
            again = recognise(clean, LIMIT_BYTES).archive
            assert script_archive.vetted(again, script_archive.takes(again, None)) == clean
        case "keras":
            keras_config.check(archive)
        case _:
            assert found.format in {"savedmodel", "tflite"}


def verdict(do, *arguments):
    """The code of the rejection, None without one; anything else that is raised fails the test."""
    rejection = None
    tracemalloc.start()
    try:
        do(*arguments)
    except Rejection as err:
        rejection = err
    finally:
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < _MAX_PEAK_BYTES
    if rejection is None:
        return None
    assert rejection.found
    assert rejection.code in ADVICE
    return rejection.code


@cache
def files():
    """A valid file of each format, small."""
    found = {name: make() for name, make in bundles.FORMATS.items()}
    found["keras"] = hostile.keras({"module": "keras.layers", "class_name": "Dense", "config": {"units": 4}})
    found["tar"] = hostile.tar_with(content=uploads.mlp().SerializeToString())
    return found


def test_the_files_to_begin_with_are_fine():
    assert {name: verdict(look, content) for name, content in files().items()} == dict.fromkeys(files())


changes = st.lists(
    st.tuples(
        st.sampled_from(["overwrite", "cut", "insert", "double", "zero"]),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=16),
        st.integers(1, 200),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content, how):
    content = bytearray(content)
    for kind, where, junk, length in how:
        at = int(where * len(content))
        if kind == "overwrite":
            content[at : at + len(junk)] = junk
        elif kind == "cut":
            del content[at : at + length]
        elif kind == "insert":
            content[at:at] = junk
        elif kind == "double":
            content[at:at] = content[at : at + length]
        else:
            content[at : at + length] = bytes(len(content[at : at + length]))
    return bytes(content)


@pytest.mark.parametrize("name", [*bundles.FORMATS, "keras", "tar"])
@settings(max_examples=60, deadline=_MAX_S, suppress_health_check=[HealthCheck.too_slow])
@given(how=changes)
def test_any_damage_to_a_file_gets_a_verdict(name, how):
    verdict(look, damaged(files()[name], how))


@pytest.mark.parametrize("name", ["onnx-bundle", "safetensors", "pt2", "torchscript", "keras"])
@settings(max_examples=60, deadline=_MAX_S, suppress_health_check=[HealthCheck.too_slow])
@given(which=st.integers(0, 50), how=changes)
def test_any_damage_within_a_sound_archive_gets_a_verdict(name, which, how):
    """The archive itself is whole: so the damage reaches the readers of its members."""
    held = bundles.members(files()[name])
    member = sorted(held)[which % len(held)]
    verdict(look, bundles.archive(held | {member: damaged(held[member] or b"x", how)}))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=_MAX_S)
@given(values)
def test_any_json_for_a_configuration(document):
    content = json.dumps(document).encode()
    assert verdict(architectures.parse, content) in ADVICE
    verdict(weights.read, len(content).to_bytes(8, "little") + content)
    assert verdict(program.vetted, content) in ADVICE


def _replaced(document, path, value):
    """The document with one of its parts, found by a list of numbers, replaced."""
    if not path or not isinstance(document, dict | list) or not document:
        return value
    keys = list(document) if isinstance(document, dict) else range(len(document))
    key = keys[path[0] % len(keys)]
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[key] = _replaced(document[key], path[1:], value)
    return copy


@settings(max_examples=200, deadline=_MAX_S)
@given(path=st.lists(st.integers(0, 40), max_size=9), value=values)
def test_a_program_with_anything_in_any_place(path, value):
    held = bundles.members(files()["pt2"])
    name = next(name for name in held if name.endswith("models/model.json"))
    document = _replaced(json.loads(held[name]), path, value)
    verdict(program.vetted, json.dumps(document).encode())


@settings(max_examples=300, deadline=_MAX_S)
@given(st.text(max_size=200))
@example("9**9**9**9")
@example("(" * 300)
@example("lambda: 0")
@example("[x for x in ()]")
@example("f'{x}'")
@example("Symbol('__import__')")
@example("s0.__class__")
@example("exec('x')")
@example("Symbol(*[1])")
@example("exec")
@example("Symbol('exec')")
@example("a" * 2001)
def test_expressions_are_arithmetic_or_refused(text):
    if verdict(program.check_expression, text) is None:
        assert not [part for part in ("__", "[", "{") if part in text]
        names = {*re.findall(r"\w+", unicodedata.normalize("NFKC", text))}
        assert not {name for name in names if hasattr(builtins, name)} - {"True", "False"} - program._FUNCTIONS


@settings(max_examples=200, deadline=_MAX_S)
@given(st.binary(max_size=200))
def test_any_bytes(content):
    for do in (look, weights.read, architectures.parse, program.vetted):
        verdict(do, content)
    verdict(pickles.check, content, "data.pkl")
    verdict(archives.opened, b"PK\x03\x04" + content, LIMIT_BYTES)
    verdict(archives.opened, bytes(257) + b"ustar" + content, LIMIT_BYTES)
