"""What lies before and after a model, declared with its upload: text or pictures in, labels or embeddings out.

A `Processing` travels in `ModelUploaded`, belongs to the version for ever, and runs in the worker. It is data, not
code: a fixed vocabulary of steps, every text and number of them bounded. Large parts (a tokenizer, a long list of
labels) lie in the artifact store under their digest.

Preprocessing steps fill inputs of the model from an input of their own, BYTES of shape [rows]: one text or one encoded
picture a row. A request may send that or the model's own input, step by step. Postprocessing steps run in order; each
takes an output, of the model or of a step before it, and gives new ones.

What a declaration makes of a model's signature, and whether it fits it, is `shared.processed_signature`. An unknown
field is refused, unlike in events: an option that is ignored would change answers.
"""

from __future__ import annotations

import hashlib
import math
import sys
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from shared.artifacts import Artifact
from shared.errors import InvalidInput

MAX_DECLARATION_BYTES: Final = 256 * 1024
"""As JSON. With its model's other fields it fits a record several times over."""
MAX_STEPS: Final = 16
MAX_INLINE_LABELS: Final = 1000
MAX_LABEL_CHARS: Final = 200
MAX_TOKENIZER_BYTES: Final = 32 * 1024 * 1024
MAX_LABELS_BYTES: Final = 4 * 1024 * 1024

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Number = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
"""Finite."""
Side = Annotated[int, Meta(ge=1, le=4096)]
Label = Annotated[str, Meta(max_length=MAX_LABEL_CHARS)]
Layout = Literal["NCHW", "NHWC", "NHW", "N"]


class Tokenize(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="tokenize"):
    """Text to token ids, by a `tokenizer.json` of the Hugging Face `tokenizers` library.

    Rows are padded on the right, ids with `pad_id` and everything else with 0: to the longest text of the request,
    rounded up to `pad_to_multiple_of` so that requests of about one length share a batch; or always to `max_length`.
    Padding to the longest needs a `mask`: without one, an answer would depend on its neighbours' lengths.
    A text with more than `max_length` tokens is cut there if `truncate`, else refused. Padding and truncation that
    the file itself asks for are ignored.
    """

    tokenizer: Artifact
    input: Name = "text"
    ids: Name = "input_ids"
    mask: Name | None = "attention_mask"
    type_ids: Name | None = None
    max_length: Annotated[int, Meta(ge=1, le=8192)] = 512
    truncate: bool = True
    padding: Literal["longest", "max_length"] = "longest"
    pad_to_multiple_of: Annotated[int, Meta(ge=1, le=8192)] = 16
    pad_id: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    add_special_tokens: bool = True

    @property
    def fills(self) -> tuple[str, ...]:
        """The inputs of the model that it gives."""
        return tuple(name for name in (self.ids, self.mask, self.type_ids) if name is not None)


class DecodeImage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="decode_image"):
    """An encoded picture (JPEG, PNG or WebP) to numbers.

    Turned upright by its EXIF orientation, what is transparent put on white, converted to `color`, brought to `width`
    x `height`, then `(pixel * scale - mean) / std` by channel (one number stands for all channels) in FP32, and
    rounded where the model takes integers.

    `fit` is CSS's object-fit: `fill` stretches, `contain` keeps the proportions and pads with black, `cover` keeps
    them and cuts off what is too much. `cover` keeps `crop` of each side beyond that: ImageNet's "shorter side to
    256, centre 224" is a width and height of 224 with a crop of 0.875.
    """

    output: Name
    width: Side
    height: Side
    input: Name = "image"
    color: Literal["RGB", "L"] = "RGB"
    fit: Literal["fill", "contain", "cover"] = "fill"
    crop: Annotated[float, Meta(gt=0, le=1)] = 1.0
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    scale: Number = 1 / 255
    mean: Annotated[tuple[Number, ...], Meta(min_length=1, max_length=3)] = (0.0,)
    std: Annotated[tuple[Number, ...], Meta(min_length=1, max_length=3)] = (1.0,)
    layout: Layout = "NCHW"
    """`NHW` has no axis of channels; `N` is one row of height x width x channels. N is the rows."""

    def __post_init__(self) -> None:
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in {1, self.channels}:
                raise ValueError(f"{name} has {len(numbers)} numbers, but {self.color} has {self.channels} channels")
        if not all(self.std):
            raise ValueError("std must not be 0")
        if self.layout == "NHW" and self.channels > 1:
            raise ValueError(f"layout NHW has no room for the channels of {self.color}")
        if self.crop < 1 and self.fit != "cover":
            raise ValueError("crop only means something with fit cover")

    @property
    def channels(self) -> int:
        """Of a picture in `color`."""
        return len(self.color)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        height, width, channels = self.height, self.width, self.channels
        shapes: dict[Layout, tuple[int, ...]] = {
            "NCHW": (channels, height, width),
            "NHWC": (height, width, channels),
            "NHW": (height, width),
            "N": (math.prod((height, width, channels)),),
        }
        return shapes[self.layout]

    @property
    def fills(self) -> tuple[str, ...]:
        """The inputs of the model that it gives."""
        return (self.output,)


class Softmax(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="softmax"):
    """`exp(x) / sum(exp(x))` along an axis that is not that of the rows."""

    output: Name
    into: Name
    axis: Annotated[int, Meta(ge=-32, le=31)] = -1


class TopK(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="top_k"):
    """The `k` largest along the last axis, largest first, of equal ones the first; fewer if there are fewer."""

    output: Name
    values: Name
    indices: Name
    k: Annotated[int, Meta(ge=1, le=1000)] = 1


class Labels(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="labels"):
    """The name of each index, as BYTES. `labels` are given here, or lie in a text file, one a line."""

    indices: Name
    into: Name
    labels: Annotated[tuple[Label, ...], Meta(min_length=1, max_length=MAX_INLINE_LABELS)] | Artifact


class MeanPool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="mean_pool"):
    """[rows, tokens, n] to [rows, n]: the mean over those tokens at which the model's input `mask` is not 0."""

    output: Name
    into: Name
    mask: Name = "attention_mask"


class L2Normalize(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="l2_normalize"):
    """Vectors along the last axis brought to length 1; those shorter than 1e-12 stay next to 0."""

    output: Name
    into: Name


PreStep = Tokenize | DecodeImage
PostStep = Softmax | TopK | Labels | MeanPool | L2Normalize


class Processing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All steps before and after a model."""

    preprocessing: Annotated[tuple[PreStep, ...], Meta(max_length=MAX_STEPS)] = ()
    postprocessing: Annotated[tuple[PostStep, ...], Meta(max_length=MAX_STEPS)] = ()

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """All that lies in the store."""
        tokenizers = [step.tokenizer for step in self.preprocessing if isinstance(step, Tokenize)]
        labels = [step.labels for step in self.postprocessing if isinstance(step, Labels)]
        return (*tokenizers, *(each for each in labels if isinstance(each, Artifact)))


_DECODER: Final = msgspec.json.Decoder(Processing)


def parse(document: bytes) -> Processing:
    """A declaration from JSON that anyone wrote.

    Raises:
        InvalidInput: too long, not JSON, or not such a declaration; the sentence says where.
    """
    if len(document) > MAX_DECLARATION_BYTES:
        raise InvalidInput(f"the processing declaration has {len(document)} bytes, above {MAX_DECLARATION_BYTES}")
    try:
        return _DECODER.decode(document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise InvalidInput(f"the processing declaration: {err}") from err


def parse_labels(content: bytes) -> tuple[str, ...]:
    """The labels in a file, one a line.

    Raises:
        InvalidInput: it is not UTF-8 text, empty, or has too long a line.
    """
    try:
        labels = tuple(content.decode().splitlines())
    except UnicodeDecodeError as err:
        raise InvalidInput("the file of labels is not UTF-8 text") from err
    if not labels or any(len(label) > MAX_LABEL_CHARS for label in labels):
        raise InvalidInput(f"the file of labels is empty, or has one of over {MAX_LABEL_CHARS} characters")
    return labels


def sha256(processing: Processing) -> str:
    """The digest of a declaration: of its canonical JSON, in which bytes of the store stand by digest, not by place."""
    fields = _without_places(msgspec.to_builtins(processing))
    return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_places(each) for key, each in value.items() if key != "uri"}
    return [_without_places(each) for each in value] if isinstance(value, list | tuple) else value
