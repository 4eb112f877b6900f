"""Tensor forms: raw bytes, numpy and JSON agree to the last bit, and what can't be a tensor is refused by name."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import tensors
from shared.errors import InvalidInput
from shared.tensors import DTYPES, Tensor, check, from_json, from_numpy, output_digest, to_json, to_numpy

FLOATS = {"FP16", "FP32", "FP64", "BF16"}
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def any_tensor(draw, datatypes=tuple(DTYPES)):
    """A valid tensor of any datatype and small shape, every bit pattern included."""
    datatype, shape = draw(st.sampled_from(datatypes)), draw(SHAPES)
    count = math.prod(shape)
    if datatype == "BYTES":
        elements = draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count))
        data = b"".join(len(element).to_bytes(4, "little") + element for element in elements)
    elif datatype == "BOOL":
        data = bytes(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    else:
        size = count * DTYPES[datatype].itemsize
        data = draw(st.binary(min_size=size, max_size=size))
    return Tensor("x", datatype, shape, data)


def through_json(tensor):
    printed = orjson.dumps(to_json(tensor), option=orjson.OPT_SERIALIZE_NUMPY)
    return from_json(tensor.name, tensor.datatype, tensor.shape, orjson.loads(printed))


def is_printable(tensor):
    """JSON carries it exactly: no NaN, no infinity, only UTF-8."""
    try:
        elements = to_json(tensor)
    except InvalidInput:
        return False
    return tensor.datatype not in FLOATS or bool(np.isfinite(elements).all())


@given(any_tensor())
def test_numpy_round_trip_keeps_every_bit(tensor):
    array = to_numpy(check(tensor))
    assert array.shape == tensor.shape
    assert array.dtype == DTYPES[tensor.datatype]
    assert from_numpy("x", array, tensor.datatype) == tensor


@given(any_tensor().filter(is_printable))
def test_json_round_trip_keeps_every_bit(tensor):
    assert through_json(tensor) == tensor


@given(any_tensor(datatypes=("INT32", "FP64", "BOOL", "BYTES")).filter(is_printable))
def test_nested_json_is_the_same_as_flat(tensor):
    nested = np.array(to_json(tensor), dtype=object).reshape(tensor.shape).tolist()
    if tensor.shape:
        assert from_json("x", tensor.datatype, tensor.shape, nested) == tensor


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_every_finite_16_bit_float_survives_json(datatype):
    bits = np.arange(2**16, dtype=np.uint16)
    values = bits.view(np.float16) if datatype == "FP16" else tensors.bf16_floats(bits)
    finite = bits[np.isfinite(values)]
    tensor = Tensor("x", datatype, finite.shape, finite.tobytes())
    assert through_json(tensor) == tensor


@pytest.mark.parametrize(
    ("datatype", "numbers", "printed"),
    [
        ("FP32", [0.1, 1e-45, 3.4028235e38, -0.0], "[0.1,1e-45,3.4028235e38,-0.0]"),
        ("FP64", [0.1, 5e-324, 1e22], "[0.1,5e-324,1e22]"),
        ("FP16", [0.1, 65504], "[0.099975586,65504.0]"),
        ("BF16", [0.1, 1.0], "[0.100097656,1.0]"),
        ("INT64", [-(2**63), 2**63 - 1], "[-9223372036854775808,9223372036854775807]"),
        ("UINT64", [2**64 - 1, 2**53 + 1], "[18446744073709551615,9007199254740993]"),
        ("BOOL", [True, False], "[true,false]"),
        ("BYTES", ["é", ""], '["é",""]'),
    ],
)
def test_json_prints_the_shortest_exact_form(datatype, numbers, printed):
    tensor = from_json("x", datatype, (len(numbers),), numbers)
    text = orjson.dumps(to_json(tensor), option=orjson.OPT_SERIALIZE_NUMPY).decode()
    assert text.replace("e+", "e") == printed


def test_json_prints_null_for_nan_and_infinity():
    for datatype in ("FP16", "FP32", "FP64"):
        array = np.array([np.nan, np.inf, -np.inf, 1.0], dtype=DTYPES[datatype])
        assert (
            orjson.dumps(to_json(from_numpy("x", array)), option=orjson.OPT_SERIALIZE_NUMPY) == b"[null,null,null,1.0]"
        )


def nearest(value, candidates):
    """The candidate nearest to the value, the even bit pattern on a tie, by exact arithmetic."""
    return min(candidates, key=lambda pair: (abs(Fraction(pair[1]) - Fraction(value)), pair[0] % 2))[0]


@given(st.integers(0, 0x7F7E), st.floats(0, 1), st.sampled_from([-math.inf, 0, math.inf]))
def test_bf16_rounds_once_to_nearest_even(bits, share, nudge):
    low, high = (float(tensors.bf16_floats(np.array([b], np.uint16))[0]) for b in (bits, bits + 1))
    middle = (low + high) / 2
    for value in (low + (high - low) * share, math.nextafter(middle, middle + nudge)):
        assert tensors.bf16_bits([value])[0] == nearest(value, [(bits, low), (bits + 1, high)])


def test_fp16_rounds_once():
    just_above_the_middle = 1 + 2**-11 + 2**-40  # by way of FP32 this would become a tie, and then 1.0
    assert to_numpy(from_json("x", "FP16", (1,), [just_above_the_middle]))[0] == np.float16(1 + 2**-10)


@pytest.mark.parametrize(
    ("datatype", "largest", "too_large"),
    [
        ("FP16", 65519.996, 65520.0),
        ("FP32", 3.4028235677973362e38, 3.4028235677973366e38),
        ("BF16", math.nextafter(2.0**128 * (1 - 2**-9), 0), 2.0**128 * (1 - 2**-9)),
    ],
)
def test_a_finite_number_never_becomes_infinite(datatype, largest, too_large):
    assert np.isfinite(to_json(from_json("x", datatype, (1,), [largest]))).all()
    for sign in (1, -1):
        with pytest.raises(InvalidInput, match="outside the range"):
            from_json("x", datatype, (1,), [sign * too_large])
    with pytest.raises(InvalidInput, match="outside the range"):
        from_json("x", datatype, (1,), [10**400])


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "BF16"])
def test_non_finite_elements_of_a_msgpack_list_stay(datatype):
    tensor = from_json("x", datatype, (3,), [math.inf, -math.inf, math.nan])
    floats = tensors.bf16_floats(to_numpy(tensor)) if datatype == "BF16" else to_numpy(tensor)
    assert np.array_equal(floats, [math.inf, -math.inf, math.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"),
    [
        ("INT32", (2,), [1, 2.0], "elements of type float"),
        ("INT32", (2,), [True, 2], "elements of type bool"),
        ("FP32", (2,), [True, 2.0], "elements of type bool"),
        ("FP32", (1,), [None], "NoneType"),
        ("FP32", (1,), ["1"], "elements of type str"),
        ("BOOL", (2,), [0, 1], "elements of type int"),
        ("BYTES", (1,), [1], "elements of type int"),
        ("UINT64", (2,), [2**64 - 1, -1], "outside the range of UINT64"),
        ("INT64", (1,), [2**63], "outside the range of INT64"),
        ("INT64", (1,), [18446744073709551616.0], "elements of type float"),
        ("INT8", (1,), [128], "outside the range of INT8"),
        ("FP16", (1,), [70000], "outside the range of FP16"),
        ("INT32", (2, 2), [[1, 2], [3]], "nested otherwise"),
        ("INT32", (2, 2), [[1, 2], 3], "nested otherwise"),
        ("INT32", (3, 2), [[1, 2, 3], [4, 5, 6]], "nested otherwise"),
        ("INT32", (2,), [[1], [2]], "nested otherwise|type list"),
        ("INT32", (2,), [1, [2]], "type list"),
        ("INT32", (3,), [1, 2], "2 elements, but shape"),
        ("INT32", (), [], "0 elements, but shape"),
        ("INT32", (-1,), [1], "integers from 0"),
        ("INT32", (True,), [1], "integers from 0"),
        ("INT32", (1.0,), [1], "integers from 0"),
        ("INT32", (2**62, 2**62), [1], "too large"),
        ("INT32", (0, 2**62), [], "too large"),
        ("BYTES", (0, 2**61), [], "too large"),
        ("INT32", (1,) * 33, [1], "rank 33"),
        ("FLOAT", (1,), [1], "unknown datatype"),
    ],
)
def test_bad_json_elements_are_refused_by_name(datatype, shape, data, message):
    with pytest.raises(InvalidInput, match=f"tensor 'x' .*({message})"):
        from_json("x", datatype, shape, data)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"),
    [
        ("FP32", (2,), bytes(7), "has 7 bytes, but FP32 of shape .2. has 8"),
        ("FP32", (0,), bytes(4), "has 4 bytes"),
        ("BOOL", (2,), b"\x00\x02", "other than 0 and 1"),
        ("BYTES", (1,), b"\x01\x00\x00", "length prefixes"),
        ("BYTES", (1,), b"\x02\x00\x00\x00a", "length prefixes"),
        ("BYTES", (1,), b"\x01\x00\x00\x00ab", "length prefixes"),
        ("BYTES", (2,), b"\x01\x00\x00\x00a", "length prefixes"),
        ("BYTES", (2**40,), b"\xff\xff\xff\xff", "length prefixes"),
        ("BYTES", (0,), b"\x00", "length prefixes"),
        ("FP32", (-1, -2), bytes(8), "integers from 0"),
    ],
)
def test_bad_bytes_are_refused_by_name(datatype, shape, data, message):
    for form in (data, memoryview(data)):
        with pytest.raises(InvalidInput, match=f"tensor 'x' .*{message}"):
            check(Tensor("x", datatype, shape, form))


def test_views_are_not_copied_and_unaligned_bytes_are():
    body = memoryview(bytearray(17))
    base = np.frombuffer(body, np.uint8)
    start = -base.ctypes.data % 4
    aligned, unaligned = (Tensor("x", "FP32", (2,), body[at : at + 8]) for at in (start, start + 1))
    assert np.shares_memory(to_numpy(aligned), base)
    assert to_numpy(unaligned).flags.aligned


def test_from_numpy_takes_any_layout_and_byte_order():
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    tensor = from_numpy("x", array)
    assert (tensor.datatype, tensor.shape) == ("INT32", (3, 2))
    assert bytes(tensor.data) == np.array([0, 3, 1, 4, 2, 5], dtype="<i4").tobytes()
    contiguous = np.zeros(3, np.float32)
    assert np.shares_memory(to_numpy(from_numpy("x", contiguous)), contiguous)


def test_from_numpy_takes_strings_of_every_kind():
    for array in (
        np.array(["é", "b"]),
        np.array(["é".encode(), b"b"]),
        np.array(["é", b"b"], object),
        np.array([np.str_("é"), np.bytes_(b"b")], object),
    ):
        tensor = from_numpy("x", array)
        assert (tensor.datatype, to_numpy(tensor).tolist()) == ("BYTES", ["é".encode(), b"b"])
    assert from_numpy("x", np.str_("é")).shape == ()


def test_from_numpy_reads_bf16_from_bits_and_from_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.array([1.0, -2.5], dtype=ml_dtypes.bfloat16)
    assert from_numpy("x", array) == from_numpy("x", array.view(np.uint16), "BF16")
    assert tensors.bf16_bits([1.0, -2.5]).tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("array", "datatype"),
    [
        (np.zeros(1, np.complex64), None),
        (np.zeros(1, np.longdouble), None),
        (np.zeros(1, "M8[s]"), None),
        (np.zeros(1, np.int64), "INT32"),
        (np.zeros(1, np.float32), "BF16"),
        (np.array([1], object), None),
        (np.array(["\ud800"]), None),
    ],
)
def test_from_numpy_converts_nothing_silently(array, datatype):
    with pytest.raises(InvalidInput, match="tensor 'x'"):
        from_numpy("x", array, datatype)


def test_bytes_that_are_not_utf8_need_the_binary_form():
    with pytest.raises(InvalidInput, match="ask for it in binary"):
        to_json(from_numpy("x", np.array([b"\xff"], object)))


@given(st.lists(any_tensor(), max_size=3))
def test_output_digest_covers_raw_bytes_in_order(outputs):
    assert output_digest(outputs) == hashlib.sha256(b"".join(tensor.data for tensor in outputs)).hexdigest()
