"""The bytes of the inference protocol: fixed documents, and NVIDIA's own client on the other side.

The golden bytes are written by hand from the protocol's documents. If one of these tests fails, clients out there and
records on the log fail too: change the contract in DESIGN.md first.
"""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.http import InferInput, InferRequestedOutput, InferResult
from tritonclient.http._utils import _get_inference_request

from shared.artifacts import Artifact
from shared.oip import (
    InferenceRequest,
    RequestedOutput,
    decode_request,
    encode_request_msgpack,
)
from shared.oip_response import binary_outputs, encode_binary, encode_header, encode_json
from shared.results import Result
from shared.tensors import Tensor, from_numpy, to_numpy

REQUEST = InferenceRequest(
    inputs=(
        Tensor("a", "INT16", (2,), b"\x01\x00\xfe\xff"),
        Tensor("b", "FP32", (1, 1), b"\x00\x00\xc0\x3f"),
        Tensor("c", "BYTES", (2,), b"\x02\x00\x00\x00\xc3\xa9\x00\x00\x00\x00"),
        Tensor("d", "BOOL", (2,), b"\x01\x00"),
        Tensor("e", "UINT64", (1,), b"\xff" * 8),
        Tensor("f", "BF16", (1,), b"\xc0\x3f"),
    ),
    outputs=(RequestedOutput("y", binary=False), RequestedOutput("z", parameters={"classification": 3})),
    id="me",
    parameters={"timeout": 1000, "binary_data_output": True},
)
AROUND = (
    '"outputs":[{"name":"y","parameters":{"binary_data":false}},{"name":"z","parameters":{"classification":3}}],'
    '"id":"me","parameters":{"timeout":1000,"binary_data_output":true}}'
)
JSON = (
    '{"inputs":[{"name":"a","datatype":"INT16","shape":[2],"data":[1,-2]},'
    '{"name":"b","datatype":"FP32","shape":[1,1],"data":[[1.5]]},'
    '{"name":"c","datatype":"BYTES","shape":[2],"data":["é",""]},'
    '{"name":"d","datatype":"BOOL","shape":[2],"data":[true,false]},'
    '{"name":"e","datatype":"UINT64","shape":[1],"data":[18446744073709551615]},'
    '{"name":"f","datatype":"BF16","shape":[1],"data":[1.5]}],' + AROUND
).encode()
BINARY_HEADER = (
    '{"inputs":[{"name":"a","datatype":"INT16","shape":[2],"parameters":{"binary_data_size":4}},'
    '{"name":"b","datatype":"FP32","shape":[1,1],"data":[1.5]},'
    '{"name":"c","datatype":"BYTES","shape":[2],"parameters":{"binary_data_size":10}},'
    '{"name":"d","datatype":"BOOL","shape":[2],"parameters":{"binary_data_size":2}},'
    '{"name":"e","datatype":"UINT64","shape":[1],"parameters":{"binary_data_size":8}},'
    '{"name":"f","datatype":"BF16","shape":[1],"parameters":{"binary_data_size":2}}],' + AROUND
).encode()
BINARY = BINARY_HEADER + bytes.fromhex("0100feff 02000000c3a900000000 0100 ffffffffffffffff c03f")
MSGPACK_COMMENTED = """
    84  # a map of four
    a26964 a26d65  # id: me
    aa706172616d6574657273 82  # parameters
        a774696d656f7574 cd03e8  # timeout: 1000
        b262696e6172795f646174615f6f7574707574 c3  # binary_data_output: true
    a6696e70757473 96  # inputs: six of name, datatype, shape, data
        84 a46e616d65a161 a86461746174797065a5494e543136 a573686170659102 a464617461c4040100feff
        84 a46e616d65a162 a86461746174797065a446503332 a57368617065920101 a464617461c4040000c03f
        84 a46e616d65a163 a86461746174797065a54259544553 a573686170659102 a464617461c40a02000000c3a900000000
        84 a46e616d65a164 a86461746174797065a4424f4f4c a573686170659102 a464617461c4020100
        84 a46e616d65a165 a86461746174797065a655494e543634 a573686170659101 a464617461c408ffffffffffffffff
        84 a46e616d65a166 a86461746174797065a442463136 a573686170659101 a464617461c402c03f
    a76f757470757473 92  # outputs: two of name, parameters
        82 a46e616d65a179 aa706172616d657465727381ab62696e6172795f64617461c2
        82 a46e616d65a17a aa706172616d657465727381ae636c617373696669636174696f6e03
"""
MSGPACK = bytes.fromhex(re.sub("#.*", "", MSGPACK_COMMENTED))


@pytest.mark.parametrize(
    ("content_type", "body", "header_length"),
    [
        ("application/json", JSON, None),
        ("application/octet-stream", BINARY, len(BINARY_HEADER)),
        ("application/msgpack", MSGPACK, None),
    ],
)
def test_the_three_forms_of_one_request(content_type, body, header_length):
    assert decode_request(content_type, body, header_length) == REQUEST


def test_what_the_gateway_puts_on_the_log():
    assert encode_request_msgpack(REQUEST) == MSGPACK


CLAIM = Artifact(uri="s3://b/sha256/ab/cd", sha256="ab" * 32, byte_size=200_000_000)
CLAIMED = InferenceRequest(inputs=(Tensor("x", "FP32", (50_000_000,), b"", CLAIM),))
CLAIM_JSON = f'{{"uri":"s3://b/sha256/ab/cd","sha256":"{"ab" * 32}","byte_size":200000000}}'
CLAIMED_JSON = f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[50000000],"data":{CLAIM_JSON}}}]}}'.encode()
CLAIMED_MSGPACK_COMMENTED = f"""
    83  # a map of three
    aa706172616d6574657273 80  # parameters: none
    a6696e70757473 91  # inputs: one of name, datatype, shape, data
        84 a46e616d65a178 a86461746174797065a446503332 a5736861706591ce02faf080 a464617461
            83 a3757269 b3{b"s3://b/sha256/ab/cd".hex()}  # uri
               a6736861323536 d940{(b"ab" * 32).hex()}  # sha256
               a9627974655f73697a65 ce0bebc200  # byte_size: 200 000 000
    a76f757470757473 90  # outputs: none named
"""
CLAIMED_MSGPACK = bytes.fromhex(re.sub("#.*", "", CLAIMED_MSGPACK_COMMENTED))


def test_a_tensor_that_lies_in_the_artifact_store():
    assert decode_request("application/json", CLAIMED_JSON) == CLAIMED
    assert decode_request("application/octet-stream", CLAIMED_JSON, len(CLAIMED_JSON)) == CLAIMED
    assert decode_request("application/msgpack", CLAIMED_MSGPACK) == CLAIMED
    assert encode_request_msgpack(CLAIMED) == CLAIMED_MSGPACK


def test_responses_with_outputs_that_lie_in_the_artifact_store():
    both = Tensor("y", "BOOL", (1,), b"\x01", Artifact(uri="s3://b/y", sha256="cd" * 32, byte_size=1))
    both_json = f'"parameters":{{"uri":"s3://b/y","sha256":"{"cd" * 32}","byte_size":1}},"data":[true]'
    claimed_json = f'{{"name":"x","datatype":"FP32","shape":[50000000],"parameters":{CLAIM_JSON}}}'
    expected = (
        f'{{"model_name":"m","model_version":"2","outputs":[{claimed_json},'
        f'{{"name":"y","datatype":"BOOL","shape":[1],{both_json}}}]}}'
    )
    outputs = (*CLAIMED.inputs, both)
    assert encode_json(model_name="m", model_version=2, outputs=outputs) == expected.encode()
    header = encode_header(model_name="m", model_version=2, echo_id=None, outputs=CLAIMED.inputs, binary={"x"})
    about = '"name":"x","datatype":"FP32","shape":[50000000]'
    where = CLAIM_JSON.removeprefix("{")
    described = f'{{{about},"parameters":{{"binary_data_size":200000000,{where}}}'
    assert header == f'{{"model_name":"m","model_version":"2","outputs":[{described}]}}'.encode()


STORED_RESULT_COMMENTED = f"""
    87  # a map of seven
    a26964 a172 a6737461747573 a9{b"succeeded".hex()} aa6d6f64656c5f6e616d65 a16d  # id, status, model_name
    ad6d6f64656c5f76657273696f6e 02  # model_version
    a76f757470757473 92  # outputs: two
        84 a46e616d65a178 a86461746174797065a446503332 a5736861706591ce02faf080
           a86172746966616374  # artifact, and no data
            83 a3757269 b3{b"s3://b/sha256/ab/cd".hex()}
               a6736861323536 d940{(b"ab" * 32).hex()}
               a9627974655f73697a65 ce0bebc200
        84 a46e616d65a179 a86461746174797065a4424f4f4c a573686170659101 a464617461c40101
    a56572726f72 c0 a772656365697074 c0  # error, receipt
"""


def test_a_result_whose_output_lies_in_the_artifact_store():
    outputs = (*CLAIMED.inputs, Tensor("y", "BOOL", (1,), b"\x01"))
    result = Result(id="r", status="succeeded", model_name="m", model_version=2, outputs=outputs)
    golden = bytes.fromhex(re.sub("#.*", "", STORED_RESULT_COMMENTED))
    assert result.encode().hex() == golden.hex()
    assert Result.decode(golden) == result


def test_a_json_response():
    outputs = (*REQUEST.inputs, from_numpy("g", np.array([np.nan], np.float32)))
    expected = (
        '{"model_name":"m","model_version":"2","id":"me","outputs":['
        '{"name":"a","datatype":"INT16","shape":[2],"data":[1,-2]},'
        '{"name":"b","datatype":"FP32","shape":[1,1],"data":[1.5]},'
        '{"name":"c","datatype":"BYTES","shape":[2],"data":["é",""]},'
        '{"name":"d","datatype":"BOOL","shape":[2],"data":[true,false]},'
        '{"name":"e","datatype":"UINT64","shape":[1],"data":[18446744073709551615]},'
        '{"name":"f","datatype":"BF16","shape":[1],"data":[1.5]},'
        '{"name":"g","datatype":"FP32","shape":[1],"data":[null]}]}'
    )
    assert encode_json(model_name="m", model_version=2, echo_id="me", outputs=outputs) == expected.encode()


def test_a_binary_response():
    header = (
        b'{"model_name":"m","model_version":"2","outputs":['
        b'{"name":"a","datatype":"INT16","shape":[2],"parameters":{"binary_data_size":4}},'
        b'{"name":"b","datatype":"FP32","shape":[1,1],"data":[1.5]}]}'
    )
    encoded = encode_binary(model_name="m", model_version=2, outputs=REQUEST.inputs[:2], binary={"a"})
    assert encoded == (header + b"\x01\x00\xfe\xff", len(header))


DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "u2", "UINT32": "u4", "UINT64": "u8", "INT8": "i1", "INT16": "i2",
    "INT32": "i4", "INT64": "i8", "FP16": "f2", "FP32": "f4", "FP64": "f8",
}  # fmt: skip
SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)


@st.composite
def client_arrays(draw):
    """An array as a user of tritonclient has it, of every datatype."""
    datatype, shape = draw(st.sampled_from([*DTYPES, "BF16", "BYTES"])), draw(SHAPES)
    if datatype == "BYTES":
        text = draw(st.lists(st.text(max_size=5), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
        flat = np.empty(len(text), dtype=object)
        flat[:] = [element.encode() for element in text]
        return datatype, flat.reshape(shape)
    if datatype == "BF16":
        return datatype, draw(arrays.arrays(np.uint16, shape, elements=st.integers(0, 0x7F7F))).view(ml_dtypes.bfloat16)
    finite = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else {}
    dtype = np.dtype(DTYPES[datatype])
    return datatype, draw(arrays.arrays(dtype, shape, elements=arrays.from_dtype(dtype, **finite)))


def sent_by_tritonclient(inputs, outputs=None):
    return _get_inference_request(
        inputs=inputs, request_id="me", outputs=outputs, sequence_id=0, sequence_start=False, sequence_end=False,
        priority=1, timeout=5, custom_parameters={"mine": "x"},
    )  # fmt: skip


@given(st.lists(st.tuples(client_arrays(), st.booleans()), min_size=1, max_size=3))
def test_requests_of_tritonclient(given_inputs):
    inputs = []
    for index, ((datatype, array), in_binary) in enumerate(given_inputs):
        one = InferInput(str(index), list(array.shape), datatype)
        inputs.append(one.set_data_from_numpy(array, binary_data=in_binary or datatype == "BF16"))
    body, header_length = sent_by_tritonclient(inputs)
    request = decode_request(None, body, header_length)
    assert request.id == "me"
    assert request.parameters == {"priority": 1, "timeout": 5, "mine": "x", "binary_data_output": True}
    assert binary_outputs(request, ["y"]) == {"y"}
    for tensor, ((_, array), _) in zip(request.inputs, given_inputs, strict=True):
        assert tensor == from_numpy(tensor.name, array)


def test_requested_outputs_of_tritonclient():
    one = InferInput("x", [1], "FP32").set_data_from_numpy(np.zeros(1, np.float32))
    outputs = [InferRequestedOutput("a"), InferRequestedOutput("b", binary_data=False)]
    body, header_length = sent_by_tritonclient([one], outputs)
    request = decode_request(None, body, header_length)
    assert request.outputs == (RequestedOutput("a", binary=True), RequestedOutput("b", binary=False))
    assert binary_outputs(request, ["a", "b"]) == {"a"}


@given(st.lists(st.tuples(client_arrays(), st.booleans()), min_size=1, max_size=3))
def test_responses_to_tritonclient(given_outputs):
    outputs = [from_numpy(str(index), array) for index, ((_, array), _) in enumerate(given_outputs)]
    binary = {str(index) for index, (_, in_binary) in enumerate(given_outputs) if in_binary}
    body, header_length = encode_binary(model_name="m", model_version=1, echo_id="me", outputs=outputs, binary=binary)
    mixed = InferResult.from_response_body(body, header_length=header_length)
    plain = InferResult.from_response_body(encode_json(model_name="m", model_version=1, outputs=outputs))
    assert mixed.get_response()["id"] == "me"
    for tensor, ((datatype, _), _) in zip(outputs, given_outputs, strict=True):
        for result in (mixed, plain):
            read = result.as_numpy(tensor.name)
            assert read.shape == tensor.shape
            if datatype == "BYTES":  # the client gives text from JSON, bytes from binary
                read = [element if isinstance(element, bytes) else element.encode() for element in read.ravel()]
                assert read == to_numpy(tensor).ravel().tolist()
            else:
                assert read.tobytes() == bytes(tensor.data)
