"""Whether a request fits a model."""

from __future__ import annotations

import msgspec
import pytest

from shared.codec import pack, unpack
from shared.errors import InvalidInput
from shared.oip import InferenceRequest, RequestedOutput
from shared.signature import Signature, TensorSpec, rows, validate_inputs
from shared.tensors import Tensor

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="audio", datatype="FP32", shape=("batch", "samples"), batch_axis=0),
        TensorSpec(name="state", datatype="FP32", shape=(2, -1, "samples"), batch_axis=1),
        TensorSpec(name="rate", datatype="INT64", shape=()),
    ),
    outputs=(TensorSpec(name="speech", datatype="FP32", shape=("batch", 1), batch_axis=0),),
)


def request_of(*, audio=(3, 4), state=(2, 3, 4), outputs=(), **others):
    shapes = {"audio": ("FP32", audio), "state": ("FP32", state), "rate": ("INT64", ())} | others
    inputs = tuple(Tensor(name, *form, b"") for name, form in shapes.items() if form)
    return InferenceRequest(inputs, tuple(map(RequestedOutput, outputs)))


def test_a_request_that_fits():
    request = request_of(outputs=("speech",))
    validate_inputs(request, SIGNATURE)
    assert rows(request.inputs, SIGNATURE) == 3


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (request_of(extra=("FP32", (1,))), "unknown input 'extra'"),
        (request_of(rate=None), "input 'rate' is missing"),
        (request_of(rate=("INT32", ())), "tensor 'rate' has datatype INT32, expected INT64"),
        (request_of(rate=("INT64", (1,))), "tensor 'rate' has shape"),
        (request_of(state=(1, 3, 4)), "tensor 'state' has shape"),
        (request_of(state=(2, 3, 5)), "samples = 5, but it is 4"),
        (request_of(state=(2, 1, 4)), "disagree on the number of rows"),
        (request_of(outputs=("speech", "noise")), "unknown output 'noise'"),
    ],
)
def test_a_request_that_does_not_fit(request_, message):
    with pytest.raises(InvalidInput, match=message):
        validate_inputs(request_, SIGNATURE)


def test_no_batch_axis_no_rows():
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1,))
    assert rows((Tensor("x", "FP32", (3,), bytes(12)),), Signature(inputs=(spec,), outputs=())) is None


def test_a_signature_survives_the_log():
    assert msgspec.convert(unpack(pack(msgspec.to_builtins(SIGNATURE))), Signature) == SIGNATURE


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": (-2,)},
        {"shape": ("",)},
        {"shape": (1.5,)},
        {"shape": (True,)},
        {"shape": (1,) * 33},
        {"datatype": "FLOAT"},
        {"name": ""},
        {"shape": (1,), "batch_axis": 1},
        {"batch_axis": 0, "shape": ()},
    ],
)
def test_specs_that_mean_nothing(fields):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": "x", "datatype": "FP32", "shape": (1,)} | fields, TensorSpec)


def test_names_are_unique():
    spec = TensorSpec(name="x", datatype="FP32", shape=())
    with pytest.raises(ValueError, match="same name"):
        Signature(inputs=(spec, spec), outputs=())
