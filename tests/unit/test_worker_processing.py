"""The declared steps in the worker: texts and pictures to tensors, outputs to labels; and what hostile ones get."""

from __future__ import annotations

import base64
import io
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from services.worker.processing import scores, text
from services.worker.processing.processor import Processor
from shared.artifacts import Artifact, ArtifactStore
from shared.errors import ArtifactNotFound, ExecutionFailed, InvalidInput, ModelNotReady, RunTimeout
from shared.oip import InferenceRequest, RequestedOutput
from shared.processing import DecodeImage, Labels, Processing, Tokenize
from shared.signature import Signature, TensorSpec, validate_inputs
from shared.tensors import from_numpy, to_numpy
from support.processing import (
    WORDS,
    artifact,
    asking,
    bomb,
    classification,
    embedder,
    embedding,
    picture,
    template_matcher,
    tokenizer_json,
)

TIME_S = 20.0


def embedding_processor(**options):
    content = tokenizer_json()
    declared = embedding(artifact(content), **options)
    return Processor(declared, embedder().signature, {artifact(content).sha256: content})


def prepared(processor, request):
    ready = processor.prepare(request, TIME_S)
    return {tensor.name: to_numpy(tensor) for tensor in ready.inputs}


def decoder(datatype="FP32", **fields):
    step = DecodeImage(**{"output": "x", "width": 4, "height": 4, "color": "L", "layout": "NHW", **fields})
    shape = ("n", *step.row_shape)
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=datatype, shape=shape, batch_axis=0),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=("n", 2), batch_axis=0),),
    )
    return Processor(Processing(preprocessing=(step,)), signature, {})


def decoded(content, datatype="FP32", **fields):
    return prepared(decoder(datatype, **fields), asking("image", content))["x"][0]


# ------------------------------------------------------------------ text


def test_texts_become_ids_and_a_mask_padded_to_a_multiple():
    made = prepared(embedding_processor(pad_to_multiple_of=4), asking("text", "a good movie", "Awful"))
    assert made["input_ids"].dtype == np.int64
    assert made["input_ids"].tolist() == [[2, 10, 4, 6, 3, 0, 0, 0], [2, 8, 3, 0, 0, 0, 0, 0]]
    assert made["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]


def test_what_is_prepared_fits_the_models_own_signature():
    processor = embedding_processor()
    request = asking("text", "a good movie")
    processor.validate(request)
    assert processor.is_due(request)
    ready = processor.prepare(request, TIME_S)
    validate_inputs(ready, embedder().signature)
    assert not processor.is_due(ready)


def test_requests_of_about_one_length_get_one_shape():
    processor = embedding_processor()
    shapes = {prepared(processor, asking("text", "good " * count))["input_ids"].shape for count in range(14)}
    assert shapes == {(1, 16)}


def test_a_long_text_is_cut_with_its_special_tokens_or_refused():
    long = asking("text", "good " * 50)
    made = prepared(embedding_processor(max_length=8), long)
    assert made["input_ids"].tolist() == [[2, 4, 4, 4, 4, 4, 4, 3]]
    with pytest.raises(InvalidInput, match=r"element 0 of 'text' has 52 tokens, above 8"):
        embedding_processor(max_length=8, truncate=False).prepare(long, TIME_S)


def test_padding_to_the_maximum_is_always_that_long():
    made = prepared(embedding_processor(max_length=32, padding="max_length"), asking("text", "good"))
    assert made["input_ids"].shape == (1, 32)


def test_an_empty_request_and_an_empty_text_have_shapes_too():
    processor = embedding_processor(add_special_tokens=False)
    assert prepared(processor, asking("text"))["input_ids"].shape == (0, 16)
    assert prepared(processor, asking("text", ""))["attention_mask"].tolist() == [[0] * 16]


@pytest.mark.parametrize(
    ("element", "problem"),
    [(b"\xff\xfe", "element 1 of 'text' is not UTF-8"), (b"a" * (text.MAX_TEXT_BYTES + 1), "bytes of text, above")],
)
def test_what_is_no_text_or_too_much_of_it_is_refused_by_name(element, problem):
    with pytest.raises(InvalidInput, match=problem):
        embedding_processor().prepare(asking("text", "good", element), TIME_S)


def test_ten_thousand_texts_are_refused_before_anything_is_computed():
    request = InferenceRequest((from_numpy("text", np.array([b"good"] * 10_000, object)),))
    with pytest.raises(InvalidInput, match="10000 elements, above 1024"):
        embedding_processor().validate(request)


def test_tokens_of_a_request_are_bounded_together():
    processor = embedding_processor(max_length=8192)
    with pytest.raises(InvalidInput, match="tokens, above"):
        processor.prepare(asking("text", "a " * 8192, *["good"] * 200), TIME_S)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 100_000, b'{"model":{"type":"BPE"}}'])
def test_a_file_that_is_no_tokenizer_is_not_ready(content):
    declared = embedding(artifact(content))
    with pytest.raises(ModelNotReady, match="the tokenizer does not load"):
        Processor(declared, embedder().signature, {artifact(content).sha256: content})


def test_a_regular_expression_that_explodes_ends_in_an_error_soon():
    hostile = json.loads(tokenizer_json())
    hostile["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    content = json.dumps(hostile).encode()
    processor = Processor(embedding(artifact(content)), embedder().signature, {artifact(content).sha256: content})
    started_s = time.monotonic()
    with pytest.raises(ExecutionFailed, match="the tokenizer panicked"):
        processor.prepare(asking("text", "a" * 5000 + "!"), TIME_S)
    assert time.monotonic() - started_s < TIME_S


def test_preparing_ends_when_its_time_is_over():
    with pytest.raises(RunTimeout, match="preprocessing took longer"):
        embedding_processor().prepare(asking("text", "good"), 0)


def test_a_tokenizers_own_padding_and_truncation_do_not_count():
    own = json.loads(tokenizer_json())
    own["truncation"] = {"direction": "Left", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    own["padding"] = {
        "strategy": {"Fixed": 7},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 9,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    content = json.dumps(own).encode()
    processor = Processor(
        embedding(artifact(content), pad_to_multiple_of=1), embedder().signature, {artifact(content).sha256: content}
    )
    assert prepared(processor, asking("text", "a good movie"))["input_ids"].tolist() == [[2, 10, 4, 6, 3]]


# ------------------------------------------------------------------ pictures

RAMP = np.arange(16).reshape(4, 4) * 16


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_a_lossless_picture_comes_out_as_its_pixels(form):
    content = picture(np.stack([RAMP] * 3, -1), form, **({"lossless": True} if form == "WEBP" else {}))
    made = decoded(content, color="RGB", layout="NHWC", scale=1.0)
    np.testing.assert_array_equal(made, np.stack([RAMP] * 3, -1).astype(np.float32))


def test_a_jpeg_comes_out_close_to_its_pixels():
    made = decoded(picture(RAMP, "JPEG", quality=95), scale=1.0)
    assert np.abs(made - RAMP).max() < 12


def test_mean_std_and_layout_are_by_channel():
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = 255, 51, 102
    made = decoded(picture(pixels), color="RGB", layout="NCHW", mean=(0.5, 0.2, 0.0), std=(0.5, 1.0, 0.4))
    assert made.shape == (3, 4, 4)
    np.testing.assert_allclose(made[:, 0, 0], [1.0, 0.0, 1.0], atol=1e-6)


def test_integers_are_rounded_and_kept_in_range():
    made = decoded(picture(RAMP), "UINT8", scale=2.0, mean=(-0.4,))
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made, np.minimum(RAMP * 2, 255))


def test_a_picture_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    made = decoded(picture(RAMP, "PNG", exif=exif), scale=1.0)
    np.testing.assert_array_equal(made, RAMP[::-1, ::-1])


def test_what_is_transparent_is_white():
    buffer = io.BytesIO()
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(buffer, "PNG")
    assert decoded(buffer.getvalue()).min() == 1.0


def test_fits_as_in_css():
    wide = np.zeros((4, 8), np.uint8)
    wide[:, 2:6] = 255  # the middle half
    content = picture(wide)
    assert decoded(content, fit="cover", resample="nearest").min() == 1.0
    contained = decoded(content, fit="contain", resample="nearest")
    assert contained[0].max() == 0.0
    assert contained[1:3].max() == 1.0
    assert decoded(content, fit="fill", resample="nearest")[0].tolist() == [0.0, 1.0, 1.0, 0.0]


def test_imagenets_crop_is_a_share_of_what_covers():
    square = np.zeros((256, 256), np.uint8)
    square[16:240, 16:240] = 255  # the centre 224 of 256
    assert decoded(picture(square), width=224, height=224, fit="cover", crop=0.875).min() > 0.99


def test_a_data_url_is_a_picture_too():
    content = b"data:image/png;base64," + base64.b64encode(picture(RAMP))
    np.testing.assert_array_equal(decoded(content, scale=1.0), RAMP)


def animation(frames=50):
    buffer = io.BytesIO()
    first, *rest = [Image.new("L", (4, 4), index) for index in range(frames)]
    first.save(buffer, "GIF", save_all=True, append_images=rest)
    return buffer.getvalue()


def deep():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not a picture in JPEG, PNG, WEBP"),
        (b"hello", "is not a picture"),
        (animation(), "is not a picture"),
        (picture(RAMP, "BMP"), "is not a picture"),
        (bomb(), "has 2500000000 pixels, above"),
        (bomb(5000, 5000), "can't be decoded"),
        (picture(np.zeros((64, 64)), "JPEG")[:300], "can't be decoded|is not a picture"),
        (picture(RAMP)[:-30], "can't be decoded|is not a picture"),
        (deep(), "only eight bits a channel"),
        (b"data:image/png;base64,!!!!", "malformed base64"),
    ],
    ids=["empty", "text", "gif", "bmp", "bomb", "short bomb", "short jpeg", "short png", "16 bit", "base64"],
)
def test_what_is_no_picture_or_too_large_is_refused_by_name(content, problem):
    with pytest.raises(InvalidInput, match=f"^element 0 of 'image'.*({problem})"):
        decoded(content)


def test_pixels_of_a_request_are_bounded_together():
    request = asking("image", *[picture(RAMP)] * 10)
    with pytest.raises(InvalidInput, match="bytes of pixels, above"):
        decoder(width=2048, height=2048).prepare(request, TIME_S)


@given(st.binary(max_size=300))
@settings(max_examples=50, deadline=None)
def test_any_bytes_are_a_picture_or_an_error(content):
    with pytest.raises(InvalidInput):
        decoded(content)


# ------------------------------------------------------------------ after the model


def test_a_picture_becomes_labels_with_their_confidence():
    templates = np.eye(3, 64) * 10
    processor = Processor(classification(("zero", "one", "two"), k=2), template_matcher(templates).signature, {})
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0, 1] = 255
    feeds = prepared(processor, asking("image", picture(pixels)))
    own = feeds["x"] @ templates.T.astype(np.float32)
    finished = dict(
        zip([spec.name for spec in processor.signature.outputs], processor.finish([own], feeds), strict=True)
    )
    assert processor.defaults == ("confidence", "label")
    assert finished["label"].tolist() == [[b"one", b"zero"]]
    assert finished["class"].tolist() == [[1, 0]]
    np.testing.assert_allclose(finished["probabilities"].sum(axis=1), 1, rtol=1e-6)
    assert list(finished) == ["scores", "probabilities", "confidence", "class", "label"]


def test_a_sentence_becomes_a_vector_of_length_one_whatever_it_is_padded_with():
    processor = embedding_processor()
    states = np.random.default_rng(0).standard_normal((2, 16, 6)).astype(np.float32)
    mask = np.zeros((2, 16), np.int64)
    mask[0, :3], mask[1, :5] = 1, 1
    feeds = {"attention_mask": mask}
    *_, embedded = processor.finish([states], feeds)
    states[0, 3:] = np.nan
    *_, again = processor.finish([states], feeds)
    np.testing.assert_array_equal(embedded, again)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, rtol=1e-6)
    expected = states[0, :3].mean(axis=0)
    np.testing.assert_allclose(embedded[0], expected / np.linalg.norm(expected), rtol=1e-5)


@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 10), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_rows_do_not_change_each_other(count, classes, k, seed):
    logits = np.random.default_rng(seed).standard_normal((count, classes)).astype(np.float32) * 10
    together = scores.top_k(scores.softmax(logits, -1), k)
    for row in range(count):
        alone = scores.top_k(scores.softmax(logits[row : row + 1], -1), k)
        for left, right in zip(together, alone, strict=True):
            np.testing.assert_array_equal(left[row : row + 1], right)


def test_of_equal_scores_the_first_comes_first_and_nan_last():
    values, indices = scores.top_k(np.array([[1, 3, 3, np.nan, 2]], np.float32), 5)
    assert indices.tolist() == [[1, 2, 4, 0, 3]]
    assert np.isnan(values[0, 4])
    assert scores.top_k(np.array([[1, 3, 3]]), 1)[1].tolist() == [[1]]


def test_softmax_of_large_and_infinite_scores_does_not_overflow():
    shares = scores.softmax(np.array([[1e30, 0], [-np.inf, -np.inf]], np.float32), 1)
    assert shares[0].tolist() == [1.0, 0.0]
    assert scores.softmax(np.array([[6e4, 6e4]], np.float16), -1).tolist() == [[0.5, 0.5]]


def test_an_index_without_a_label_fails_the_run():
    processor = Processor(classification(("only",)), template_matcher(np.eye(3, 64)).signature, {})
    with pytest.raises(ExecutionFailed, match="index 2, but there are 1 labels"):
        processor.finish([np.array([[0, 1, 2]], np.float32)], {})


def test_labels_may_lie_in_a_file():
    content = b"null\neins\nzwei\n"
    processor = Processor(
        classification(artifact(content)),
        template_matcher(np.eye(3, 64)).signature,
        {artifact(content).sha256: content},
    )
    *_, labels = processor.finish([np.array([[0, 1, 2]], np.float32)], {})
    assert labels.tolist() == [[b"zwei", b"eins", b"null"]]


@pytest.mark.parametrize("content", [b"", b"\xff\n", b"x" * 201])
def test_a_bad_file_of_labels_is_refused(content):
    declared = classification(artifact(content))
    with pytest.raises(InvalidInput, match="the file of labels"):
        Processor(declared, template_matcher(np.eye(3, 64)).signature, {artifact(content).sha256: content})


# ------------------------------------------------------------------ loading


async def test_what_the_declaration_names_is_fetched_from_the_store(tmp_path):
    store = ArtifactStore(f"file://{tmp_path}")

    async def chunks():
        yield tokenizer_json()

    held = await store.put_stream(chunks(), limit_bytes=1 << 20)
    processor = await Processor.load(embedding(held), embedder().signature, store)
    assert prepared(processor, asking("text", WORDS[4]))["input_ids"][0, :3].tolist() == [2, 4, 3]
    missing = Artifact(uri=held.uri.replace(held.sha256[2:], "0" * 62), sha256=held.sha256, byte_size=held.byte_size)
    with pytest.raises(ArtifactNotFound):
        await Processor.load(embedding(missing), embedder().signature, store)


def test_requested_outputs_and_parameters_stay():
    request = asking("text", "good", outputs=[RequestedOutput("embedding")])
    assert embedding_processor().prepare(request, TIME_S).outputs == request.outputs


def test_a_declaration_that_does_not_fit_is_not_built():
    declared = Processing(postprocessing=(Labels(indices="states", into="label", labels=("a",)),))
    with pytest.raises(InvalidInput, match="labels: 'states' is of FP32"):
        Processor(declared, embedder().signature, {})


def test_ids_have_the_datatype_that_the_model_takes():
    content = tokenizer_json()
    tokens = {"shape": ("n", "t"), "batch_axis": 0}
    signature = Signature(
        inputs=(
            TensorSpec(name="ids", datatype="INT32", **tokens),
            TensorSpec(name="keep", datatype="BOOL", **tokens),
            TensorSpec(name="segments", datatype="INT32", **tokens),
        ),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=("n", 1), batch_axis=0),),
    )
    step = Tokenize(tokenizer=artifact(content), ids="ids", mask="keep", type_ids="segments", pad_id=9)
    processor = Processor(Processing(preprocessing=(step,)), signature, {artifact(content).sha256: content})
    made = prepared(processor, asking("text", "good"))
    assert {name: array.dtype.str for name, array in made.items()} == {"ids": "<i4", "keep": "|b1", "segments": "<i4"}
    assert made["ids"][0, :5].tolist() == [2, 4, 3, 9, 9]
