"""Small models with steps before and after them, and what they need: a tokenizer, pictures, a declaration."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from shared.artifacts import Artifact
from shared.oip import InferenceRequest
from shared.processing import DecodeImage, L2Normalize, Labels, MeanPool, Processing, Softmax, Tokenize, TopK
from shared.signature import Signature, TensorSpec
from shared.tensors import from_numpy
from support.onnx_models import OnnxModel

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "movie", "great", "awful", "not", "a")
WIDTH = 6


def artifact(content: bytes) -> Artifact:
    """A claim check for bytes that no store holds."""
    digest = hashlib.sha256(content).hexdigest()
    return Artifact(uri=f"memory:///sha256/{digest}", sha256=digest, byte_size=len(content))


def tokenizer_json() -> bytes:
    """Lower-cased words, with [CLS] and [SEP] around them, as BERT has it."""
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made.to_str().encode()


def embedder(width: int = WIDTH) -> OnnxModel:
    """`states[b, t, :] = table[input_ids[b, t]] * attention_mask[b, t]`: as a sentence encoder without attention."""
    table = np.random.default_rng(7).standard_normal((len(WORDS), width)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
        helper.make_node("Cast", ["attention_mask"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["kept", "axes"], ["column"]),
        helper.make_node("Mul", ["vectors", "column"], ["states"]),
    ]
    tokens = ["batch", "tokens"]
    graph = helper.make_graph(
        nodes,
        "embedder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, tokens) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("states", TensorProto.FLOAT, [*tokens, width])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([2]), "axes")],
    )
    specs = tuple(
        TensorSpec(name=name, datatype="INT64", shape=("batch", "tokens"), batch_axis=0)
        for name in ("input_ids", "attention_mask")
    )
    states = TensorSpec(name="states", datatype="FP32", shape=("batch", "tokens", width), batch_axis=0)
    return OnnxModel(_bytes(graph), Signature(inputs=specs, outputs=(states,)))


def embedding(tokenizer: Artifact | None = None, **options) -> Processing:
    """Text to a sentence's vector, for `embedder`."""
    step = Tokenize(tokenizer=tokenizer or artifact(tokenizer_json()), **options)
    pool = MeanPool(output="states", into="mean")
    return Processing(preprocessing=(step,), postprocessing=(pool, L2Normalize(output="mean", into="embedding")))


def template_matcher(templates: np.ndarray) -> OnnxModel:
    """`scores = x @ templates.T` for flat pictures `x` of as many pixels as each of the templates has."""
    classes, pixels = templates.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["scores"])],
        "template_matcher",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", pixels])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(np.ascontiguousarray(templates.T, np.float32), "w")],
    )
    x = TensorSpec(name="x", datatype="FP32", shape=("batch", pixels), batch_axis=0)
    scores = TensorSpec(name="scores", datatype="FP32", shape=("batch", classes), batch_axis=0)
    return OnnxModel(_bytes(graph), Signature(inputs=(x,), outputs=(scores,)))


def classification(labels, side: int = 8, k: int = 3, **options) -> Processing:
    """A grey picture to the `k` likeliest labels, for `template_matcher`."""
    decode = DecodeImage(output="x", width=side, height=side, color="L", layout="N", **options)
    return Processing(
        preprocessing=(decode,),
        postprocessing=(
            Softmax(output="scores", into="probabilities"),
            TopK(output="probabilities", values="confidence", indices="class", k=k),
            Labels(indices="class", into="label", labels=labels),
        ),
    )


def picture(pixels: np.ndarray, form: str = "PNG", **options) -> bytes:
    """An encoded picture of uint8 pixels: [height, width] or with three channels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, form, **options)
    return buffer.getvalue()


def bomb(width=50_000, height=50_000):
    """A PNG of a few hundred bytes that says that it has so many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def asking(name: str, *elements: bytes | str, outputs=()) -> InferenceRequest:
    """A request with BYTES elements."""
    array = np.empty(len(elements), object)
    array[:] = elements
    return InferenceRequest(inputs=(from_numpy(name, array),), outputs=tuple(outputs))


def _bytes(graph) -> bytes:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()
