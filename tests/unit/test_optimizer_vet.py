"""Vetting: every kind of file ends as a model or with the code and sentence that help its uploader."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from services.optimizer.rejections import ADVICE, Rejection, reason
from services.optimizer.sandbox import signature, vet
from support import uploads


def verdict(content):
    content = content if isinstance(content, bytes) else content.SerializeToString()
    with pytest.raises(Rejection) as caught:
        signature.read(vet.parse(content))
    assert caught.value.code in ADVICE
    return caught.value.code, reason(caught.value.code, caught.value.found)


@pytest.mark.parametrize(
    "make",
    [uploads.mlp, uploads.conv, uploads.recurrent, uploads.embedding, uploads.text, uploads.endless, uploads.bomb],
)
def test_models_pass(make):
    content = make().SerializeToString()
    assert vet.parse(content).SerializeToString() == content


def test_magika_passes():
    found = signature.read(vet.parse(uploads.magika()))
    assert [(spec.name, spec.datatype, spec.shape) for spec in found.inputs] == [("bytes", "INT32", ("unk__214", 2048))]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "The file is empty"),
        (uploads.pickled(), "a Python pickle"),
        (uploads.safetensors(), "a safetensors file"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
        (b"<!DOCTYPE html><html>", "HTML or XML"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b"x\x9c" + bytes(20), "as joblib writes pickles"),
    ],
)
def test_other_formats_are_named(content, says):
    code, sentence = verdict(content)
    assert code == "unsupported_format"
    assert says in sentence
    assert "aiaas models convert" in sentence
    assert "torch.onnx.export" in sentence


def test_a_truncated_file_is_told():
    code, sentence = verdict(uploads.magika()[:-100])
    assert code == "invalid_model"
    assert "truncated" in sentence


def test_no_graph():
    assert verdict(helper.make_model(helper.make_graph([], "g", [], [])))[0] == "unsupported_format"


def in_attribute():
    return uploads.inside_if(helper.make_node("Constant", [], ["b"], value=uploads.outside()))


def in_sparse():
    made = uploads.mlp()
    made.graph.sparse_initializer.add().values.CopyFrom(uploads.outside())
    return made


def in_function():
    made = uploads.mlp()
    made.functions.add(name="f", domain="local").node.append(
        helper.make_node("Constant", [], ["b"], value=uploads.outside())
    )
    return made


def in_training():
    made = uploads.mlp()
    made.training_info.add().algorithm.initializer.append(uploads.outside())
    return made


@pytest.mark.parametrize("make", [uploads.with_outside_initializer, in_attribute, in_sparse, in_function, in_training])
def test_data_outside_the_file_is_refused_wherever_it_is_named(make):
    code, sentence = verdict(make())
    assert code == "external_data"
    assert "onnx.save(" in sentence


def test_custom_operators_are_refused_at_any_depth():
    nested = uploads.inside_if(helper.make_node("Magic", [], ["b"], domain="acme.corp"))
    for made in (uploads.custom_operator(), nested):
        code, sentence = verdict(made)
        assert code == "operator_domain"
        assert "acme.corp" in sentence
    assert verdict(uploads.custom_operator("ai.onnx.contrib"))[0] == "operator_domain"
    epcontext = uploads.model(
        [helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/etc/passwd")],
        {"x": (TensorProto.FLOAT, (1,))},
        {"y": (TensorProto.FLOAT, (1,))},
        domains=["com.microsoft"],
    )
    assert verdict(epcontext)[0] == "operator_domain"


def test_functions_of_the_file_itself_are_allowed():
    made = uploads.model(
        [helper.make_node("Twice", ["x"], ["y"], domain="local")],
        {"x": (TensorProto.FLOAT, ("n",))},
        {"y": (TensorProto.FLOAT, ("n",))},
        domains=["local"],
    )
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    made.functions.append(helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 20)]))
    assert vet.parse(made.SerializeToString())
    made.functions[0].node[0].domain = "acme.corp"
    assert verdict(made)[0] == "operator_domain"


def test_too_old_and_too_new():
    assert verdict(uploads.model(uploads.mlp().graph.node, {}, {"y": (1, (1,))}, opset=99))[0] == "unsupported_opset"
    assert verdict(uploads.model(uploads.mlp().graph.node, {}, {"y": (1, (1,))}, opset=6))[0] == "unsupported_opset"
    strange = uploads.mlp()
    strange.ir_version = 2
    assert verdict(strange)[0] == "unsupported_opset"


def test_the_checker_has_its_say():
    broken = uploads.mlp()
    broken.graph.node[0].input[0] = "nowhere"
    code, sentence = verdict(broken)
    assert code == "invalid_model"
    assert "nowhere" in sentence


FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, ("n",))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (helper.make_sequence_type_proto(FLOATS), "sequence_type"),
        (helper.make_optional_type_proto(FLOATS), "optional_type"),
        (helper.make_map_type_proto(TensorProto.INT64, FLOATS), "map_type"),
        (helper.make_tensor_type_proto(TensorProto.FLOAT, None), "no shape"),
        (helper.make_tensor_type_proto(TensorProto.COMPLEX64, ("n",)), "COMPLEX64"),
    ],
)
def test_inputs_that_the_protocol_can_not_carry(kind, says):
    made = uploads.elementwise("Identity")
    made.graph.input[0].type.CopyFrom(kind)
    made.graph.output[0].type.CopyFrom(kind)
    with pytest.raises(Rejection) as caught:
        signature.read(made)
    assert caught.value.code == "unsupported_input"
    assert says in caught.value.found


def test_names_and_numbers_of_inputs_are_bounded():
    for change in ("x" * 201, "a\nb", ""):
        made = uploads.elementwise("Identity")
        made.graph.input[0].name = change
        with pytest.raises(Rejection, match="unusable name"):
            signature.read(made)
    none = uploads.elementwise("Identity")
    none.graph.input.pop()
    with pytest.raises(Rejection, match="0 inputs"):
        signature.read(none)


def test_a_signature_keeps_what_dims_are_called():
    found = signature.read(
        uploads.model([], {"x": (TensorProto.FLOAT, ("B", 3, None, "?", ""))}, {"y": (TensorProto.INT8, ())})
    )
    assert found.inputs[0].shape == ("B", 3, -1, -1, -1)
    assert (found.outputs[0].shape, found.outputs[0].datatype) == ((), "INT8")


def code_of(content):
    """The code of the verdict, None for a model that passes."""
    try:
        signature.read(vet.parse(content))
    except Rejection as rejection:
        return rejection.code
    return None


@given(st.binary(max_size=300))
def test_any_bytes_get_a_verdict(content):
    assert code_of(content) in ADVICE


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_any_damage_gets_a_verdict(place, junk):
    content = bytearray(uploads.mlp().SerializeToString())
    place %= len(content)
    content[place : place + len(junk)] = junk
    assert code_of(bytes(content)) in {None, *ADVICE}
