"""Declarations of what lies before and after a model: what is refused, and what callers see of one that fits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from shared import processing
from shared.artifacts import Artifact
from shared.codec import decode_event, encode_event
from shared.errors import InvalidInput
from shared.events import ModelUploaded
from shared.oip import InferenceRequest, RequestedOutput
from shared.processed_signature import check, default_outputs, public_signature, validate, wants_preprocessing
from shared.processing import (
    DecodeImage,
    L2Normalize,
    Labels,
    MeanPool,
    Processing,
    Softmax,
    Tokenize,
    TopK,
    parse,
)
from shared.signature import Signature, TensorSpec
from shared.tensors import from_numpy
from support.facts import PROCESSING, SIGNATURE, uploaded

TOKENIZER = Artifact(uri="file:///store/sha256/ab/cd", sha256="ab" * 32, byte_size=1000)


def spec(name, datatype, *shape, batch_axis=0):
    return TensorSpec(name=name, datatype=datatype, shape=shape, batch_axis=batch_axis)


ENCODER = Signature(
    inputs=(spec("input_ids", "INT64", "b", "t"), spec("attention_mask", "INT64", "b", "t")),
    outputs=(spec("states", "FP32", "b", "t", 8), spec("pooled", "FP32", "b", 8)),
)
SENTENCES = Processing(
    preprocessing=(Tokenize(tokenizer=TOKENIZER),),
    postprocessing=(MeanPool(output="states", into="mean"), L2Normalize(output="mean", into="embedding")),
)


def request(*names, outputs=(), rows=2):
    arrays = {
        "text": np.array([b"a"] * rows, object),
        "input_ids": np.ones((rows, 3), np.int64),
        "attention_mask": np.ones((rows, 3), np.int64),
    }
    return InferenceRequest(
        tuple(from_numpy(name, arrays[name]) for name in names), tuple(map(RequestedOutput, outputs))
    )


# ------------------------------------------------------------------ declarations


def test_a_declaration_is_the_same_after_json_and_after_an_event():
    assert parse(msgspec.json.encode(PROCESSING)) == PROCESSING
    event = uploaded(processing=SENTENCES)
    assert decode_event(ModelUploaded, encode_event(event)) == event


def step(**fields):
    return {"preprocessing": [fields]}


def image(**fields):
    return step(kind="decode_image", output="x", width=2, height=2, **fields)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (b"", "truncated|JSON"),
        (b"\xff", "JSON"),
        (b"[" * 10_000, "declaration"),
        (b" " * (processing.MAX_DECLARATION_BYTES + 1), "bytes, above"),
        ([], "Expected `object`"),
        ({"preprocesing": []}, "unknown field `preprocesing`"),
        (step(kind="run_python", code="1"), r"'run_python' - at `\$.preprocessing\[0\].kind`"),
        (image(pading=1), "unknown field `pading`"),
        (image(std=[0]), "std must not be 0"),
        (image(mean=[1, 2]), "mean has 2 numbers, but RGB has 3 channels"),
        (image(layout="NHW"), "no room for the channels"),
        (image(crop=0.5), "crop only means something with fit cover"),
        (json.dumps(image(scale=1.5)).replace("1.5", "1e999").encode(), "scale|out of range"),
        (image(resample="magic"), r"\.resample"),
        ({"preprocessing": [image()["preprocessing"][0]] * 17}, "length <= 16"),
        ({"postprocessing": [{"kind": "labels", "indices": "i", "into": "l", "labels": []}]}, "labels"),
        ({"postprocessing": [{"kind": "labels", "indices": "i", "into": "l", "labels": ["x" * 201]}]}, "<= 200"),
        ({"postprocessing": [{"kind": "top_k", "output": "y", "values": "v", "indices": "i", "k": 0}]}, r"\.k"),
        (step(kind="tokenize", tokenizer={"uri": "file:///x", "sha256": "no", "byte_size": 1}), "sha256"),
        (step(kind="tokenize", tokenizer="tokenizer.json"), r"\.tokenizer"),
    ],
)
def test_what_is_no_declaration_is_refused_with_the_place(document, problem):
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(InvalidInput, match=problem):
        parse(content)


def test_the_digest_is_of_what_is_computed_not_of_where_bytes_lie():
    moved = Artifact(uri="s3://elsewhere/x", sha256=TOKENIZER.sha256, byte_size=TOKENIZER.byte_size)
    other = Artifact(uri=TOKENIZER.uri, sha256="cd" * 32, byte_size=TOKENIZER.byte_size)
    digests = [
        processing.sha256(Processing(preprocessing=(Tokenize(tokenizer=each),))) for each in (TOKENIZER, moved, other)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_the_digest_of_a_declaration_stays():
    assert processing.sha256(PROCESSING) == "122523750079c0a79983435b4745e6209f9a667cebe7833e3baa5999c0fd6c49"


def test_what_it_names_in_the_store():
    labels = Labels(indices="i", into="l", labels=TOKENIZER)
    assert replace(SENTENCES, postprocessing=(labels,)).artifacts == (TOKENIZER, TOKENIZER)
    assert PROCESSING.artifacts == ()


# ------------------------------------------------------------------ does it fit?


def test_declarations_that_fit():
    check(PROCESSING, SIGNATURE)
    check(SENTENCES, ENCODER)
    check(Processing(), SIGNATURE)


PICTURES = Signature(inputs=(spec("x", "FP32", "b", 3, 4, 4),), outputs=(spec("y", "FP32", "b", 10),))
DECODE = {"output": "x", "width": 4, "height": 4}
STATE = Signature(inputs=(spec("x", "FP32", 2, "b", batch_axis=1),), outputs=(spec("y", "FP32", 2, "b", batch_axis=1),))


def tokenize(**fields):
    return Tokenize(**{"tokenizer": TOKENIZER, **fields})


@pytest.mark.parametrize(
    ("signature", "steps", "problem"),
    [
        (ENCODER, [tokenize(ids="ids")], "no input 'ids'; it takes"),
        (ENCODER, [tokenize(type_ids="attention_mask")], "filled twice"),
        (ENCODER, [tokenize(input="input_ids")], "is an input already"),
        (ENCODER, [tokenize(mask=None)], "needs a mask"),
        (ENCODER, [tokenize(tokenizer=Artifact(uri="file:///x", sha256="ab" * 32, byte_size=2**40))], "bytes"),
        (ENCODER, [DecodeImage(output="input_ids", width=4, height=4)], "tensors of rank 4"),
        (PICTURES, [tokenize(ids="x", mask=None, padding="max_length")], "can't fill 'x' of FP32"),
        (PICTURES, [DecodeImage(output="x", width=5, height=4)], r"rows of \[3, 4, 5\]"),
        (PICTURES, [DecodeImage(**DECODE, layout="NHWC")], r"rows of \[4, 4, 3\]"),
        (PICTURES, [DecodeImage(**DECODE), DecodeImage(**DECODE)], "an input already"),
        (STATE, [DecodeImage(output="x", width=1, height=1, layout="N", color="L")], "lie along axis 1"),
        (PICTURES, [Softmax(output="z", into="p")], "there is no output 'z'"),
        (PICTURES, [Softmax(output="y", into="y")], "an output 'y' already"),
        (PICTURES, [Softmax(output="y", into="p", axis=0)], "no axis for it within a row"),
        (PICTURES, [Softmax(output="y", into="p", axis=2)], "has no axis 2"),
        (PICTURES, [Labels(indices="y", into="l", labels=("a",))], "'y' is of FP32"),
        (PICTURES, [MeanPool(output="y", into="m")], "no input 'attention_mask'"),
        (ENCODER, [MeanPool(output="pooled", into="m")], r"is not \[rows, tokens, n\]"),
        (STATE, [TopK(output="y", values="v", indices="i")], "no axis for it within a row"),
    ],
)
def test_what_does_not_fit_is_refused(signature, steps, problem):
    before = tuple(each for each in steps if isinstance(each, Tokenize | DecodeImage))
    declared = Processing(preprocessing=before, postprocessing=tuple(each for each in steps if each not in before))
    with pytest.raises(InvalidInput, match=problem):
        check(declared, signature)


def test_a_fixed_number_of_tokens_must_be_padded_to():
    fixed = Signature(inputs=(spec("input_ids", "INT64", "b", 128),), outputs=ENCODER.outputs)
    check(Processing(preprocessing=(tokenize(mask=None, padding="max_length", max_length=128),)), fixed)
    with pytest.raises(InvalidInput, match="takes exactly 128 tokens"):
        check(Processing(preprocessing=(tokenize(mask=None, padding="max_length"),)), fixed)


# ------------------------------------------------------------------ what callers see


def test_a_caller_sees_what_goes_into_the_steps_and_what_comes_out_of_the_last():
    seen = public_signature(SENTENCES, ENCODER)
    assert seen.inputs == (spec("text", "BYTES", "b"),)
    assert seen.outputs == (spec("embedding", "FP32", "b", 8),)
    seen = public_signature(PROCESSING, SIGNATURE)
    assert seen.inputs == (spec("image", "BYTES", "n"),)
    assert seen.outputs == (spec("confidence", "FP32", "n", 2), spec("label", "BYTES", "n", 2))


def test_without_steps_behind_the_model_its_outputs_are_the_outputs():
    assert default_outputs(replace(SENTENCES, postprocessing=()), ENCODER) == ENCODER.outputs


def test_a_model_of_one_row_takes_one_text():
    one = Signature(inputs=(spec("input_ids", "INT64", 1, "t", batch_axis=None),), outputs=ENCODER.outputs)
    declared = Processing(preprocessing=(tokenize(mask=None, padding="max_length"),))
    assert public_signature(declared, one).inputs == (spec("text", "BYTES", 1, batch_axis=None),)


def test_text_or_tensors_may_be_sent_and_any_output_asked_for():
    text, tensors = request("text", outputs=["states", "mean"]), request("input_ids", "attention_mask")
    validate(text, ENCODER, SENTENCES)
    validate(tensors, ENCODER, SENTENCES)
    validate(tensors, ENCODER, None)
    assert wants_preprocessing(text, SENTENCES)
    assert not wants_preprocessing(tensors, SENTENCES)


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (request("text", "input_ids"), "unknown input 'input_ids'; the model takes"),
        (request(), "input 'text' is missing"),
        (request("input_ids"), "input 'attention_mask' is missing"),
        (request("text", outputs=["label"]), "unknown output 'label'; the model gives .*'embedding'"),
        (request("text", rows=1025), "1025 elements, above 1024"),
        (InferenceRequest((from_numpy("text", np.ones((2, 2), np.int64)),)), "has datatype INT64, expected BYTES"),
        (InferenceRequest((from_numpy("text", np.array([[b"a"]], object)),)), r"has shape \[1, 1\], expected"),
    ],
)
def test_what_the_model_with_its_steps_does_not_take_is_refused(asked, problem):
    with pytest.raises(InvalidInput, match=problem):
        validate(asked, ENCODER, SENTENCES)


def test_steps_and_tensors_mix_where_the_model_has_further_inputs():
    both = Signature(inputs=(*ENCODER.inputs, spec("age", "FP32", "b", 1)), outputs=ENCODER.outputs)
    age = from_numpy("age", np.ones((2, 1), np.float32))
    asked = InferenceRequest((*request("text").inputs, age))
    validate(asked, both, SENTENCES)
    three = InferenceRequest((*request("text", rows=3).inputs, age))
    with pytest.raises(InvalidInput, match=r"disagree|elsewhere"):
        validate(three, both, SENTENCES)


# ------------------------------------------------------------------ the guide


def declarations_of_the_guide():
    """The examples of `docs/processing.md`, with claim checks in the place of paths."""
    guide = (Path(__file__).parents[2] / "docs" / "processing.md").read_text()
    for example in re.findall(r"```json\n(.*?)```", guide, re.DOTALL):
        declared = json.loads(example)
        for each in (*declared["preprocessing"], *declared["postprocessing"]):
            each |= {name: msgspec.to_builtins(TOKENIZER) for name in ("tokenizer", "labels") if name in each}
        yield parse(json.dumps(declared).encode())


def test_the_guides_examples_are_declarations():
    digits = Signature(inputs=(spec("x", "FP32", "n", 64),), outputs=(spec("scores", "FP32", "n", 10),))
    first, second = declarations_of_the_guide()
    check(first, digits)
    check(second, ENCODER)
    assert [output.name for output in default_outputs(first, digits)] == ["confidence", "label"]
    assert [output.name for output in default_outputs(second, ENCODER)] == ["embedding"]
