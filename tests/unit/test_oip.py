"""The inference request in its three forms, what breaks each of them, and signatures."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import oip, oip_response
from shared.artifacts import Artifact
from shared.codec import pack
from shared.errors import InvalidInput
from shared.oip import (
    InferenceRequest,
    RequestedOutput,
    decode_header,
    decode_request,
    encode_request_msgpack,
    with_inputs,
)
from shared.oip_response import binary_outputs
from shared.tensors import DTYPES, Tensor, from_numpy, to_json

MSGPACK = "application/msgpack"
NAMES = st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable())
PARAMETERS = st.dictionaries(
    NAMES,
    st.text(max_size=5)
    | st.integers(-(2**53), 2**53)
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False),
    max_size=3,
).map(lambda parameters: {key: value for key, value in parameters.items() if key != "binary_data"})


def example(datatype):
    """Two rows with values that JSON can carry in every datatype."""
    if datatype == "BYTES":
        return from_numpy(datatype, np.array([["a", ""], ["é", "\x00"]]))
    if datatype == "BF16":
        return from_numpy(datatype, np.array([[0, 0x3F80], [0x8000, 0x0001]], np.uint16), "BF16")
    return from_numpy(datatype, np.array([[0, 1], [1, 0]], DTYPES[datatype]))


@st.composite
def any_request(draw):
    datatypes = draw(st.lists(st.sampled_from(tuple(DTYPES)), unique=True, max_size=4))
    names = draw(st.lists(NAMES, unique=True, max_size=3))
    outputs = tuple(RequestedOutput(name, draw(st.none() | st.booleans()), draw(PARAMETERS)) for name in names)
    return InferenceRequest(
        tuple(map(example, datatypes)), outputs, draw(st.none() | st.text(max_size=5)), draw(PARAMETERS)
    )


def body_of(request, in_binary):
    """The request as JSON with the inputs named in `in_binary` behind the header, as a client would write it."""
    inputs = []
    for tensor in request.inputs:
        entry = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if tensor.name in in_binary:
            entry["parameters"] = {"binary_data_size": len(tensor.data)}
        else:
            entry["data"] = to_json(tensor)
        inputs.append(entry)
    outputs = [
        {
            "name": output.name,
            "parameters": output.parameters | ({} if output.binary is None else {"binary_data": output.binary}),
        }
        for output in request.outputs
    ]
    document = {"id": request.id, "parameters": request.parameters, "inputs": inputs, "outputs": outputs, "later": 1}
    header = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return header + b"".join(tensor.data for tensor in request.inputs if tensor.name in in_binary), len(header)


@given(any_request())
def test_msgpack_round_trip(request_):
    assert decode_request(MSGPACK, encode_request_msgpack(request_)) == request_


@given(any_request(), st.sets(st.sampled_from(tuple(DTYPES))))
def test_json_and_binary_mixed_as_one_likes(request_, in_binary):
    body, header_length = body_of(request_, in_binary)
    assert decode_request("application/octet-stream", memoryview(body), header_length) == request_
    # tritonclient sends binary bodies without a content type.
    assert decode_request(None, body, header_length) == request_


@given(any_request())
def test_json(request_):
    body, _ = body_of(request_, set())
    for content_type in (None, "application/json", "Application/JSON; charset=utf-8", "application/octet-stream"):
        assert decode_request(content_type, body) == request_


def test_msgpack_takes_lists_too():
    tensor = {"name": "x", "datatype": "BYTES", "shape": [2], "data": ["é", b"\xff"]}
    assert decode_request(MSGPACK, pack({"inputs": [tensor]})).inputs == (
        from_numpy("x", np.array(["é", b"\xff"], object)),
    )


INPUT = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}
CLAIM = {"uri": "file:///store/sha256/ab/cd", "sha256": "ab" * 32, "byte_size": 4}


def with_input(**changes):
    return {"inputs": [{key: value for key, value in (INPUT | changes).items() if value is not ...}]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "must be a map, not list"),
        ({}, "inputs must be a list"),
        ({"inputs": {}}, "inputs must be a list"),
        ({"inputs": [INPUT] * 257}, "up to 256"),
        ({"inputs": [1]}, "an input must be a map"),
        ({"inputs": [INPUT, INPUT]}, "an input twice"),
        ({"inputs": [], "id": 7}, "id must be a string"),
        ({"inputs": [], "outputs": 1}, "outputs must be a list"),
        ({"inputs": [], "outputs": [{}]}, "an output needs a name"),
        ({"inputs": [], "outputs": [{"name": "y"}] * 2}, "an output twice"),
        ({"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "true or false"),
        ({"inputs": [], "parameters": []}, "must be a map of up to 64"),
        ({"inputs": [], "parameters": {"a": []}}, "parameter 'a'"),
        ({"inputs": [], "parameters": {"a": None}}, "parameter 'a'"),
        ({"inputs": [], "parameters": {str(i): 1 for i in range(65)}}, "up to 64"),
        (with_input(name=...), "an input needs a name"),
        (with_input(name=""), "an input needs a name"),
        (with_input(name="n" * 1025), "an input needs a name"),
        (with_input(datatype=...), "tensor 'x' has no datatype"),
        (with_input(shape=...), "tensor 'x' has no shape"),
        (with_input(shape=1), "tensor 'x' has no shape"),
        (with_input(data=...), "tensor 'x' has no data"),
        (with_input(data=1.0), "tensor 'x' has no data"),
        (with_input(data="AAAA"), "tensor 'x' has no data"),
        (with_input(data={}), "no claim check .* missing required field `uri`"),
        (with_input(data=CLAIM | {"uri": ""}), r"no claim check .* `\$.uri`"),
        (with_input(data=CLAIM | {"uri": "u" * 2049}), r"no claim check .* `\$.uri`"),
        (with_input(data=CLAIM | {"sha256": "AB" * 32}), r"no claim check .* `\$.sha256`"),
        (with_input(data=CLAIM | {"sha256": None}), r"no claim check .* `\$.sha256`"),
        (with_input(data=CLAIM | {"byte_size": "4"}), r"no claim check .* `\$.byte_size`"),
        (with_input(data=CLAIM | {"byte_size": 4.0}), r"no claim check .* `\$.byte_size`"),
        (with_input(data=CLAIM | {"byte_size": -1}), r"no claim check .* `\$.byte_size`"),
        (with_input(data=CLAIM | {"byte_size": 5}), "has 5 bytes, but FP32 of shape"),
        (with_input(data=CLAIM, datatype="FP128"), "unknown datatype"),
        (with_input(data=CLAIM, datatype="BYTES", shape=[2]), "length prefixes"),
        (with_input(data=CLAIM | {"byte_size": 2**63}, datatype="BYTES"), "length prefixes"),
        (with_input(data=CLAIM, parameters={"binary_data_size": 4}), "both data and binary_data_size"),
        (with_input(data=..., uri="file:///x"), "has no data"),
        (with_input(data=..., parameters={"binary_data_size": 4}), "0 bytes are left"),
        (with_input(data=..., parameters={"shared_memory_region": "r"}), "has no data"),
        (with_input(parameters={"binary_data_size": 4}), "both data and binary_data_size"),
    ],
)
def test_a_broken_contract_is_refused_in_json_and_in_msgpack(document, message):
    for content_type, body in ((None, orjson.dumps(document)), (MSGPACK, pack(document))):
        with pytest.raises(InvalidInput, match=message):
            decode_request(content_type, body)


@pytest.mark.parametrize("size", ["-1", "3", "5", str(2**70), "4.0", "true", '"4"'])
def test_binary_lengths_add_up_exactly(size):
    tensor = f'{{"name":"x","datatype":"FP32","shape":[1],"parameters":{{"binary_data_size":{size}}}}}'
    header = f'{{"inputs":[{tensor}]}}'.encode()
    with pytest.raises(InvalidInput, match="tensor 'x'"):
        decode_request("application/octet-stream", header + bytes(4), len(header))


@pytest.mark.parametrize(("datatype", "size"), [("FP32", 4), ("BYTES", 4), ("BYTES", 2**40)])
def test_a_claim_check_is_a_tensor_whose_bytes_are_elsewhere(datatype, size):
    document = with_input(datatype=datatype, data=CLAIM | {"byte_size": size, "later": 1})
    artifact = Artifact(**CLAIM | {"byte_size": size})
    for content_type, body in ((None, orjson.dumps(document)), (MSGPACK, pack(document))):
        request = decode_request(content_type, body)
        [tensor] = request.inputs
        assert tensor == Tensor("x", datatype, (1,), b"", artifact)
        assert tensor.claimed
        assert tensor.size_bytes == size
        assert decode_request(MSGPACK, encode_request_msgpack(request)) == request


def test_a_claim_that_was_fetched_is_a_tensor_like_any_other():
    fetched = Tensor("x", "FP32", (1,), b"\x00" * 4, Artifact(**CLAIM))
    assert not fetched.claimed
    empty = Tensor("x", "FP32", (0,), b"", Artifact(**CLAIM | {"byte_size": 0}))
    assert not empty.claimed  # nothing has to be fetched
    [sent] = decode_request(MSGPACK, encode_request_msgpack(InferenceRequest((fetched,)))).inputs
    assert sent == Tensor("x", "FP32", (1,), b"\x00" * 4)


@given(any_request(), st.sets(st.sampled_from(tuple(DTYPES))))
def test_a_header_before_its_tensors(request_, in_binary):
    body, header_length = body_of(request_, in_binary)
    announced = decode_header(body[:header_length])
    tail, arrived = body[header_length:], []
    for name, size in announced.sizes.items():
        [planned] = [tensor for tensor in announced.request.inputs if tensor.name == name]
        arrived.append(Tensor(name, planned.datatype, planned.shape, tail[:size]))
        tail = tail[size:]
    assert not tail
    assert with_inputs(announced.request, arrived) == request_


@pytest.mark.parametrize("size", ["-1", "3", "5", str(2**70), "4.0", "true", '"4"'])
def test_a_header_whose_sizes_contradict_its_shapes(size):
    tensor = f'{{"name":"x","datatype":"FP32","shape":[1],"parameters":{{"binary_data_size":{size}}}}}'
    with pytest.raises(InvalidInput, match="tensor 'x'"):
        decode_header(f'{{"inputs":[{tensor}]}}'.encode())


def test_bytes_behind_the_last_tensor_are_refused():
    body, header_length = body_of(InferenceRequest((example("FP32"),)), {"FP32"})
    with pytest.raises(InvalidInput, match="1 bytes follow"):
        decode_request(oip.BINARY, body + b"!", header_length)
    for wrong in (0, -1, len(body) + 1):
        with pytest.raises(InvalidInput, match="header length"):
            decode_request(oip.BINARY, body, wrong)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (None, b""),
        (None, b"\xff\xfe"),
        (None, b'{"inputs": [NaN]}'),
        (None, b"[" * 100_000),
        (MSGPACK, b""),
        (MSGPACK, b"\xc1"),
        (MSGPACK, pack({"inputs": []}) + b"\x00"),
        (MSGPACK, b"\x91" * 100_000),
        ("text/plain", b"{}"),
    ],
)
def test_garbage_is_invalid_input(content_type, body):
    with pytest.raises(InvalidInput):
        decode_request(content_type, body)


@given(st.binary(max_size=200), st.sampled_from([None, MSGPACK]), st.none() | st.integers(-3, 300))
def test_random_bytes_raise_nothing_else(body, content_type, header_length):
    with pytest.raises(InvalidInput):
        decode_request(content_type, body, header_length)


ODD = st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=2) | st.just([]) | st.just({})
STRANGE_INPUT = st.fixed_dictionaries(
    {},
    optional={
        "name": NAMES | ODD,
        "datatype": st.sampled_from(["FP32", "INT8", "BOOL", "BYTES", "FP0"]) | ODD,
        "shape": st.lists(st.integers(0, 2) | ODD, max_size=3) | ODD,
        "data": st.lists(st.integers(0, 1) | ODD, max_size=4) | st.binary(max_size=8) | ODD,
        "parameters": PARAMETERS | st.just({"binary_data_size": 4}) | ODD,
        "later": ODD,
    },
)
STRANGE_REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(STRANGE_INPUT, max_size=2) | ODD},
    optional={"id": ODD, "parameters": PARAMETERS | ODD, "outputs": st.just([{"name": "y"}]) | ODD, "later": ODD},
)


@given(STRANGE_REQUEST, st.binary(max_size=4))
def test_the_quick_way_and_the_careful_way_agree(document, behind):
    def outcome(read):
        try:
            return read(document, oip._Tail(behind))
        except InvalidInput as err:
            return err.message

    assert outcome(oip._request) == outcome(oip._careful_request)


@given(STRANGE_REQUEST)
def test_the_quick_way_with_floats_in_json_agrees_too(document):
    text = orjson.dumps(document, default=bytes.hex)

    def outcome(read):
        try:
            return read()
        except InvalidInput as err:
            return err.message

    careful = outcome(lambda: oip._careful_request(orjson.loads(text), oip._Tail(b"")))
    assert outcome(lambda: oip._json_request(text)) == careful


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "BF16"])
@pytest.mark.parametrize("number", ["1", "-1.5", "16777217", "18446744073709551616", "1e-400", "1e39", "1e999", "NaN"])
def test_a_number_is_the_same_the_quick_way_and_the_careful_way(datatype, number):
    def outcome(more):
        head = orjson.dumps({"inputs": [{"name": "x", "datatype": datatype, "shape": [1]}]})[:-3]
        try:
            return decode_request(None, head + b',"data":[' + number.encode() + b"]}]" + more + b"}").inputs
        except InvalidInput as err:
            return err.message

    assert outcome(b"") == outcome(b',"outputs":[{"name":"y"}]')


def test_binary_outputs_follow_the_output_then_the_request():
    outputs = (RequestedOutput("a", binary=False), RequestedOutput("b", binary=True), RequestedOutput("c"))
    names = ["a", "b", "c"]
    assert binary_outputs(InferenceRequest((), outputs), names) == {"b"}
    assert binary_outputs(InferenceRequest((), outputs, None, {"binary_data_output": True}), names) == {"b", "c"}
    assert binary_outputs(InferenceRequest((), (), None, {"binary_data_output": True}), names) == set(names)


def test_a_response_mixes_json_and_binary():
    outputs = [example("FP32"), Tensor("raw", "BYTES", (1,), b"\x01\x00\x00\x00\xff")]
    body, header_length = oip_response.encode_binary(
        model_name="m", model_version=3, echo_id="me", outputs=outputs, binary={"raw"}
    )
    header = orjson.loads(body[:header_length])
    assert header["outputs"][0]["data"] == [0, 1, 1, 0]
    assert header["outputs"][1]["parameters"] == {"binary_data_size": 5}
    assert body[header_length:] == outputs[1].data
    with pytest.raises(InvalidInput, match="ask for it in binary"):
        oip_response.encode_json(model_name="m", model_version=3, outputs=outputs)
