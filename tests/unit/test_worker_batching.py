"""Who shares a run, and that taking a run apart gives everyone their own rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from msgspec.structs import replace

from services.worker.batching import answer, concatenate, independent_rows, rows_alone, shape_key, take_apart
from shared.artifacts import Artifact
from shared.events import Measurements
from shared.oip import InferenceRequest, RequestedOutput
from shared.registry import Variant
from shared.signature import Signature, TensorSpec
from shared.tensors import from_numpy, to_numpy
from support.facts import artifact

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="x", datatype="FP32", shape=("n", 3), batch_axis=0),
        TensorSpec(name="state", datatype="FP32", shape=(2, "n"), batch_axis=1),
        TensorSpec(name="rate", datatype="INT64", shape=()),
    ),
    outputs=(
        TensorSpec(name="y", datatype="FP32", shape=("n", 3), batch_axis=0),
        TensorSpec(name="next", datatype="FP32", shape=(2, "n"), batch_axis=1),
    ),
)


def variant(batch_cap):
    return Variant("fp32", artifact(), SIGNATURE, batch_cap, Measurements())


def request(rows, *, rate=16000, seed=0, outputs=()):
    dice = np.random.default_rng(seed)
    return InferenceRequest(
        inputs=(
            from_numpy("x", dice.standard_normal((rows, 3)).astype(np.float32)),
            from_numpy("state", dice.standard_normal((2, rows)).astype(np.float32)),
            from_numpy("rate", np.array(rate, np.int64)),
        ),
        outputs=tuple(RequestedOutput(name) for name in outputs),
    )


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_everyone_gets_their_own_rows_back(counts):
    requests = [request(rows, seed=index) for index, rows in enumerate(counts)]
    feeds = concatenate(requests, SIGNATURE)
    assert feeds["x"].shape == (sum(counts), 3)
    assert feeds["state"].shape == (2, sum(counts))
    pieces = take_apart([feeds["x"], feeds["state"]], counts, SIGNATURE)
    for asked, piece in zip(requests, pieces, strict=True):
        outputs = answer(asked, piece)
        assert [tensor.name for tensor in outputs] == ["y", "next"]
        for sent, got in zip(asked.inputs[:2], outputs, strict=True):
            assert to_numpy(got).tobytes() == to_numpy(sent).tobytes()


@given(hnp.arrays(np.float32, (4, 3)))
def test_a_lone_request_is_not_copied(array):
    asked = InferenceRequest(
        inputs=(from_numpy("x", array), from_numpy("state", array[:2].T), from_numpy("rate", np.array(1)))
    )
    assert np.shares_memory(concatenate([asked], SIGNATURE)["x"], array)


def test_shape_keys_leave_the_batch_axis_out_and_shared_inputs_in():
    assert shape_key(request(1), SIGNATURE) == shape_key(request(4, seed=3), SIGNATURE)
    assert shape_key(request(1), SIGNATURE) != shape_key(request(1, rate=8000), SIGNATURE)


def test_shared_inputs_from_the_artifact_store_are_told_apart_by_their_digest():
    def fetched(sha256):
        *others, rate = request(1).inputs
        return InferenceRequest((*others, replace(rate, artifact=Artifact(uri="u", sha256=sha256, byte_size=8))))

    assert shape_key(fetched("a" * 64), SIGNATURE) == shape_key(fetched("a" * 64), SIGNATURE)
    assert shape_key(fetched("a" * 64), SIGNATURE) != shape_key(fetched("b" * 64), SIGNATURE)


def test_who_runs_alone():
    batched = variant(batch_cap=4)
    assert rows_alone(request(4), batched) == 4
    assert rows_alone(request(5), batched) is None
    assert rows_alone(request(0), batched) is None
    assert rows_alone(request(1), variant(batch_cap=1)) is None


def test_rows_are_told_of_what_runs_alone_too_if_they_are_independent():
    batched = variant(batch_cap=4)
    assert [independent_rows(request(count), batched) for count in (0, 4, 5)] == [0, 4, 5]
    assert independent_rows(request(3), variant(batch_cap=1)) is None


def test_only_outputs_asked_for_in_the_signatures_order():
    arrays = [np.zeros((1, 3), np.float32), np.zeros((2, 1), np.float32)]
    [outputs] = take_apart(arrays, [1], SIGNATURE)
    assert [t.name for t in answer(request(1), outputs)] == ["y", "next"]
    assert [t.name for t in answer(request(1, outputs=["next"]), outputs)] == ["next"]
    assert [t.name for t in answer(request(1, outputs=["next", "y"]), outputs)] == ["y", "next"]
