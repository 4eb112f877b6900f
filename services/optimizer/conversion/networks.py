"""The registered architectures as torch modules, and weights for them by name, each with the shape it must have.

A module is first made without memory (torch's `meta` device): only when every name and shape of the file fits is
anything of its size allocated. Weights of 16 bits are computed with in 32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.optimizer.conversion import architectures as arch
from services.optimizer.conversion.exporting import from_module
from services.optimizer.rejections import Rejection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.optimizer.conversion import weights
    from services.optimizer.conversion.source import Source

_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_LISTED: Final = 5
_ACTIVATIONS: Final[Mapping[str, Any]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softmax": lambda: nn.Softmax(dim=-1),
}


def convert(config: arch.Config, tensors: Mapping[str, weights.Tensor], threads: int) -> Source:
    """The network that `config.json` names, with the weights of the bundle.

    Raises:
        Rejection: config and weights are not of one network of ours.
        NotConvertible: torch does not export it.
    """
    torch.set_num_threads(threads)
    with torch.device("meta"):
        module, example, dims, outputs = _network(config)
    _fill(module, _fitting(tensors, config, module))
    how = f"weights in our network {type(config).__name__.lower()}"
    return from_module(module.eval(), example, dims, outputs, how)


def _fitting(tensors: Mapping[str, weights.Tensor], config: arch.Config, module: nn.Module) -> dict[str, Tensor]:
    """The file's weights under the network's names.

    Raises:
        Rejection: some are missing, left over, or of another shape.
    """
    wanted = module.state_dict()
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    found = {_renamed(name, config.rename): tensor for name, tensor in tensors.items()}
    found = {name: tensor for name, tensor in found.items() if not name.startswith(tuple(config.ignore) or ("\0",))}
    for what, names in (
        ("lacks", set(wanted) - optional - set(found)),
        ("has, and the network does not,", set(found) - set(wanted)),
    ):
        if names:
            listed = ", ".join(sorted(names)[:_MAX_LISTED])
            raise Rejection("invalid_bundle", f"The file of weights {what} {len(names)} tensors such as {listed[:300]}")
    for name, tensor in found.items():
        if tuple(wanted[name].shape) != tensor.shape:
            shapes = f"{list(tensor.shape)}, not {list(wanted[name].shape)}"
            raise Rejection("invalid_bundle", f"Tensor {name[:100]!r} has the shape {shapes}")
    return {name: _tensor(tensor) for name, tensor in found.items()}


def _renamed(name: str, renames: Mapping[str, str]) -> str:
    """The name with the longest of the beginnings that fit replaced."""
    fitting = [old for old in renames if name.startswith(old)]
    longest = max(fitting, key=len, default=None)
    return name if longest is None else renames[longest] + name[len(longest) :]


def _tensor(tensor: weights.Tensor) -> Tensor:
    if not tensor.data.nbytes:
        return torch.zeros(tensor.shape, dtype=_DTYPES[tensor.dtype])
    values = torch.frombuffer(bytearray(tensor.data), dtype=_DTYPES[tensor.dtype]).reshape(tensor.shape)
    return values.float() if values.is_floating_point() else values


def _fill(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    counters = {
        name: torch.zeros((), dtype=torch.int64) for name in module.state_dict() if name.endswith("num_batches_tracked")
    }
    module.load_state_dict({**counters, **values}, assign=True)


# ------------------------------------------------------------------ the networks

_Dims = tuple[dict[int, str], ...]
_Network = tuple[nn.Module, dict[str, Tensor], _Dims, tuple[str, ...]]


def _network(config: arch.Config) -> _Network:
    """The module, an example of each input, the names of their free axes, and the outputs' names."""
    match config:
        case arch.Mlp():
            example = torch.zeros(2, config.sizes[0])
            return _sequential(config.layers, example), {config.input: example}, ({0: "batch"},), (config.output,)
        case arch.Cnn():
            example = torch.zeros(2, *config.shape)
            return _sequential(config.layers, example), {config.input: example}, ({0: "batch"},), (config.output,)
        case arch.Bert():
            return _bert(config)
        case arch.SileroVad():
            inputs = {"input": torch.zeros(2, 576), "state": torch.zeros(2, 2, 128)}
            return SileroVad(), inputs, ({0: "batch"}, {1: "batch"}), ("output", "stateN")


def _sequential(layers: tuple[arch.Layer, ...], values: Tensor) -> nn.Sequential:
    """The layers, each made for the shape that the ones before it give.

    Raises:
        Rejection: a layer does not fit what comes before it.
    """
    made: list[nn.Module] = []
    for index, layer in enumerate(layers):
        try:
            module = _layer(layer, values.shape)
            values = module(values)
        except (RuntimeError, ValueError, IndexError) as err:
            what = f"layer {index} of config.json does not fit {list(values.shape)}: {str(err)[:200]}"
            raise Rejection("invalid_bundle", what) from err
        made.append(module)
    return nn.Sequential(*made)


def _layer(layer: arch.Layer, shape: torch.Size) -> nn.Module:
    match layer:
        case arch.Linear(units=units, bias=bias):
            return nn.Linear(shape[-1], units, bias)
        case arch.Conv2d():
            return nn.Conv2d(
                shape[1],
                layer.channels,
                layer.kernel,
                layer.stride,
                layer.padding,
                groups=layer.groups,
                bias=layer.bias,
            )
        case arch.BatchNorm2d(epsilon=epsilon):
            return nn.BatchNorm2d(shape[1], epsilon).eval()
        case arch.LayerNorm(epsilon=epsilon):
            return nn.LayerNorm(shape[-1], epsilon)
        case arch.MaxPool2d():
            return nn.MaxPool2d(layer.size, layer.stride, layer.padding)
        case arch.AvgPool2d(size=size):
            return nn.AdaptiveAvgPool2d(1) if size is None else nn.AvgPool2d(size)
        case arch.Flatten():
            return nn.Flatten()
        case arch.Dropout():
            return nn.Identity()
        case arch.Activate(function=function):
            activation: nn.Module = _ACTIVATIONS[function]()
            return activation


def _bert(config: arch.Bert) -> _Network:
    if config.hidden_size % config.num_attention_heads:
        raise Rejection("invalid_bundle", "hidden_size is no multiple of num_attention_heads")
    tokens = min(8, config.max_position_embeddings)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if config.token_types else [])]
    example = {name: torch.ones(2, tokens, dtype=torch.int64) for name in names}
    output = "last_hidden_state" if config.pooling == "none" else "sentence_embedding"
    return Bert(config), example, tuple({0: "batch", 1: "sequence"} for _ in names), (output,)


class _Embeddings(nn.Module):
    def __init__(self, config: arch.Bert) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)[None, :]
        summed = self.word_embeddings(ids) + self.position_embeddings(places) + self.token_type_embeddings(types)
        normed: Tensor = self.LayerNorm(summed)
        return normed


class _Add(nn.Module):
    """A dense layer whose result is added to what went in, and normalized."""

    def __init__(self, given: int, made: int, epsilon: float) -> None:
        super().__init__()
        self.dense = nn.Linear(given, made)
        self.LayerNorm = nn.LayerNorm(made, epsilon)

    def forward(self, values: Tensor, before: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.dense(values) + before)
        return normed


class _Attention(nn.Module):
    def __init__(self, config: arch.Bert) -> None:
        super().__init__()
        width = config.hidden_size
        self.self = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.output = _Add(width, width, config.layer_norm_eps)
        self.heads = config.num_attention_heads

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        rows, tokens, width = values.shape
        apart = (rows, tokens, self.heads, width // self.heads)
        query, key, value = (self.self[name](values).view(apart).transpose(1, 2) for name in ("query", "key", "value"))
        scores = query @ key.transpose(2, 3) / (width // self.heads) ** 0.5 + mask
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, tokens, width)
        added: Tensor = self.output(mixed, values)
        return added


class _Layer(nn.Module):
    def __init__(self, config: arch.Bert) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.output = _Add(config.intermediate_size, config.hidden_size, config.layer_norm_eps)
        self.activation = functional.gelu if config.hidden_act == "gelu" else functional.relu

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        attended = self.attention(values, mask)
        layer: Tensor = self.output(self.activation(self.intermediate["dense"](attended)), attended)
        return layer


class _Encoder(nn.Module):
    def __init__(self, config: arch.Bert) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layer:
            values = layer(values, mask)
        return values


class Bert(nn.Module):
    """i64[batch, sequence] ids and mask to the tokens' states, or one embedding a row."""

    def __init__(self, config: arch.Bert) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.pooling = config.pooling
        self.normalize = config.normalize

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """f32[batch, sequence, hidden], or f32[batch, hidden]."""
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        values: Tensor = self.embeddings(input_ids, types)
        shown = attention_mask.to(values.dtype)
        values = self.encoder(values, (1 - shown)[:, None, None, :] * -1e9)
        if self.pooling == "none":
            return values
        if self.pooling == "cls":
            pooled = values[:, 0]
        else:
            pooled = (values * shown[:, :, None]).sum(1) / shown.sum(1, keepdim=True).clamp(min=1e-9)
        return functional.normalize(pooled, dim=-1) if self.normalize else pooled


class SileroVad(nn.Module):
    """f32[batch, 576] (64 samples of context, 512 new ones) and f32[2, batch, 128] to f32[batch, 1] and the state."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, samples: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitudes of a short-time Fourier transform, four convolutions, a recurrent cell, one neuron."""
        padded = functional.pad(samples.unsqueeze(1), (0, 64), mode="reflect")
        waves = self.stft_conv(padded)
        values = (waves[:, :129] ** 2 + waves[:, 129:] ** 2).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            values = layer(values).relu()
        hidden, cell = self.lstm_cell(values.squeeze(-1), (state[0], state[1]))
        speech = self.final_conv(hidden.unsqueeze(-1).relu()).sigmoid()
        return speech.squeeze(1).mean(1, keepdim=True), torch.stack([hidden, cell])
