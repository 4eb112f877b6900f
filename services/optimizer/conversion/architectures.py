"""What a `config.json` beside safetensors may say: which of our architectures the weights are for, and how large.

Data, not code: `architecture` names one of the networks that `networks` builds, the rest are its sizes. Everything is
bounded. Configurations of BERT as Hugging Face writes them (`model_type: bert`) are taken as they are.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from services.optimizer.rejections import Rejection

_MAX_CONFIG_BYTES: Final = 1024 * 1024
Units = Annotated[int, Meta(ge=1, le=1 << 20)]
Small = Annotated[int, Meta(ge=0, le=64)]
Positive = Annotated[int, Meta(ge=1, le=64)]
Name = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"\A[A-Za-z_][A-Za-z0-9_.]*\Z")]
Activation = Literal["relu", "gelu", "tanh", "sigmoid", "silu", "softmax"]


class Linear(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="linear"):
    """A fully connected layer of so many neurons."""

    units: Units
    bias: bool = True


class Conv2d(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="conv2d"):
    """A convolution over images."""

    channels: Units
    kernel: Positive
    stride: Positive = 1
    padding: Small = 0
    groups: Annotated[int, Meta(ge=1, le=1 << 16)] = 1
    bias: bool = True


class BatchNorm2d(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="batch_norm2d"):
    """Normalization by running statistics."""

    epsilon: Annotated[float, Meta(gt=0, lt=1)] = 1e-5


class LayerNorm(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="layer_norm"):
    """Normalization of each row over its last axis."""

    epsilon: Annotated[float, Meta(gt=0, lt=1)] = 1e-5


class MaxPool2d(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="max_pool2d"):
    """The largest of each window."""

    size: Positive
    stride: Positive | None = None
    padding: Small = 0


class AvgPool2d(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="avg_pool2d"):
    """The mean of each window; of the whole image where no size is said."""

    size: Positive | None = None


class Flatten(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="flatten"):
    """All of a row in one axis."""


class Dropout(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="dropout"):
    """Nothing, here; it has a place in the numbering of `torch.nn.Sequential`."""


class Activate(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="activation"):
    """A function of each number; softmax is over the last axis."""

    function: Activation


Layer = Linear | Conv2d | BatchNorm2d | LayerNorm | MaxPool2d | AvgPool2d | Flatten | Dropout | Activate


class _Architecture(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="architecture"):
    rename: Annotated[dict[str, str], Meta(max_length=1000)] = {}
    """From the beginnings of names in the file to those of the network: `{"fc1": "0"}`."""
    ignore: Annotated[tuple[str, ...], Meta(max_length=100)] = ()
    """Beginnings of names in the file that are not used."""


class Mlp(_Architecture, frozen=True, kw_only=True, tag="mlp"):
    """Layers of `sizes` neurons, the first being the input's; named as in `torch.nn.Sequential` (`0.weight`)."""

    sizes: Annotated[tuple[Units, ...], Meta(min_length=2, max_length=256)]
    activation: Activation = "relu"
    output_activation: Activation | None = None
    bias: bool = True
    input: Name = "input"
    output: Name = "output"

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layer by layer, with an activation between any two."""
        found: list[Layer] = []
        for units in self.sizes[1:]:
            found += [Linear(units, self.bias), Activate(self.activation)]
        found.pop()
        return (*found, Activate(self.output_activation)) if self.output_activation else tuple(found)


class Cnn(_Architecture, frozen=True, kw_only=True, tag="cnn"):
    """Layers one after the other, numbered as in `torch.nn.Sequential`; `shape`: channels, rows, columns."""

    shape: Annotated[tuple[Units, ...], Meta(min_length=3, max_length=3)]
    layers: Annotated[tuple[Layer, ...], Meta(min_length=1, max_length=512)]
    input: Name = "input"
    output: Name = "output"


class Bert(Struct, frozen=True, kw_only=True, tag_field="architecture", tag="bert"):
    """A BERT encoder (https://arxiv.org/abs/1810.04805), with the names of Hugging Face's configuration and weights.

    What else such a configuration has (dropout and the like) does not matter to answers, and is passed over.
    """

    vocab_size: Annotated[int, Meta(ge=1, le=1 << 22)]
    hidden_size: Annotated[int, Meta(ge=1, le=1 << 14)]
    num_hidden_layers: Annotated[int, Meta(ge=1, le=128)]
    num_attention_heads: Annotated[int, Meta(ge=1, le=256)]
    intermediate_size: Annotated[int, Meta(ge=1, le=1 << 16)]
    max_position_embeddings: Annotated[int, Meta(ge=1, le=1 << 16)]
    type_vocab_size: Annotated[int, Meta(ge=1, le=1024)] = 2
    layer_norm_eps: Annotated[float, Meta(gt=0, lt=1)] = 1e-12
    hidden_act: Literal["gelu", "relu"] = "gelu"
    position_embedding_type: Literal["absolute"] = "absolute"
    is_decoder: Literal[False] = False
    pooling: Literal["none", "mean", "cls"] = "none"
    """Ours: what becomes of the tokens' states; `none` gives them all."""
    normalize: bool = False
    """Ours: whether the pooled embedding gets length 1."""
    token_types: bool = False
    """Ours: whether `token_type_ids` are an input; else all are 0."""
    rename: Annotated[dict[str, str], Meta(max_length=1000)] = msgspec.field(default_factory=lambda: {"bert.": ""})
    ignore: Annotated[tuple[str, ...], Meta(max_length=100)] = ("embeddings.position_ids", "pooler.", "cls.")


class SileroVad(_Architecture, frozen=True, kw_only=True, tag="silero-vad-16k"):
    """Silero's voice activity detector for 16 kHz (https://github.com/snakers4/silero-vad), as its package ships it."""


Config = Mlp | Cnn | Bert | SileroVad
NAMES: Final = ("bert", "cnn", "mlp", "silero-vad-16k")


def parse(content: bytes) -> Config:
    """A `config.json`.

    Raises:
        Rejection: it names no architecture of ours, or not as that wants it.
    """
    if len(content) > _MAX_CONFIG_BYTES:
        raise Rejection("invalid_bundle", f"config.json has {len(content)} bytes")
    try:
        document = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        if "architecture" not in document and document.get("model_type") == msgspec.Raw(b'"bert"'):
            document["architecture"] = msgspec.Raw(b'"bert"')
        if "architecture" not in document:
            known = ", ".join(NAMES)
            raise Rejection("invalid_bundle", f"config.json has no 'architecture': it is one of {known}")
        config: Config = msgspec.json.decode(msgspec.json.encode(document), type=Config)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as err:
        raise Rejection("invalid_bundle", f"config.json: {str(err)[:300]} (architectures: {', '.join(NAMES)})") from err
    return config
