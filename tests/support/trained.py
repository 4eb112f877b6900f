"""Networks as torch's exporter writes them, and digits to train them on. Each is made once in a process."""

from __future__ import annotations

import logging
import tempfile
import warnings
from functools import cache
from io import BytesIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime as ort
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from benchmarks.serving import minilm as benchmark
from services.optimizer.training.config import AdamW, Training
from services.optimizer.training.data import Rows
from services.optimizer.training.train import train

OPSET = 20
HOLD_OUT = 500


class Mlp(nn.Sequential):
    """64 pixels to ten scores."""

    def __init__(self, classes=10, hidden=48):
        super().__init__(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, classes))


class Cnn(nn.Sequential):
    """Two convolutions and two dense layers; the first of them follows a Flatten."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )  # fmt: skip - a block of the network a line


class Residual(nn.Module):
    """A residual sum, a depthwise convolution behind it, and mean pooling."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.inner, self.outer = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)
        self.depthwise, self.head = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Linear(16, 10)

    def forward(self, image):
        image = torch.relu(self.stem_norm(self.stem(image)))
        image = torch.relu(image + self.outer(functional.silu(self.inner(image))))
        image = functional.max_pool2d(self.depthwise(image), 2)
        return self.head(image.mean((2, 3)))


class Concat(nn.Module):
    """Two branches side by side, read by one convolution, and split again."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(1, 12, 5, padding=2)
        self.both, self.head = nn.Conv2d(20, 24, 3, padding=1), nn.Linear(12 * 16, 10)

    def forward(self, image):
        image = torch.cat([torch.relu(self.left(image)), functional.hardswish(self.right(image))], 1)
        first, second = torch.chunk(functional.max_pool2d(self.both(image), 2), 2, dim=1)
        return self.head((first * torch.sigmoid(second)).flatten(1))


class Encoder(nn.Module):
    """A transformer encoder over eight tokens of eight pixels, with separate projections, as BERT has them."""

    def __init__(self, width=32, heads=4, inner=64, layers=2):
        super().__init__()
        self.heads = heads
        self.embed, self.head = nn.Linear(8, width), nn.Linear(width, 10)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {part: nn.Linear(width, width) for part in ("query", "key", "value", "out")}
                | {"up": nn.Linear(width, inner), "down": nn.Linear(inner, width)}
                | {"norm": nn.LayerNorm(width), "last": nn.LayerNorm(width)}
            )
            for _ in range(layers)
        )

    def forward(self, image):
        states = self.embed(image[:, 0])
        for layer in self.layers:
            rows, tokens, width = states.shape
            query, key, value = (
                layer[part](states).view(rows, tokens, self.heads, -1).transpose(1, 2)
                for part in ("query", "key", "value")
            )
            scores = (query @ key.transpose(-1, -2)) / (width // self.heads) ** 0.5
            seen = (scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, tokens, -1)
            states = layer["norm"](states + layer["out"](seen))
            states = layer["last"](states + layer["down"](functional.gelu(layer["up"](states))))
        return self.head(states.mean(1)).softmax(-1)


class TorchEncoder(nn.Module):
    """Torch's own encoder layers, whose query, key and value are one matrix and whose heads lie beside the rows."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(8, 32), nn.Linear(32, 10)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu") for _ in range(2)
        )

    def forward(self, image):
        states = self.embed(image[:, 0])
        for layer in self.layers:
            states = layer(states)
        return self.head(states.mean(1))


NETWORKS = {"mlp": Mlp, "cnn": Cnn, "residual": Residual, "concat": Concat, "encoder": Encoder, "torch": TorchEncoder}


def exported(module, example, *dynamic, **names):
    """The module as an ONNX model; `dynamic` names the free dimensions of each input by axis."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    examples = example if isinstance(example, tuple) else (example,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own use of what torch deprecates
        program = torch.onnx.export(
            module.eval(), examples, dynamo=True, opset_version=OPSET, verbose=False, dynamic_shapes=dynamic, **names
        )
    buffer = BytesIO()
    onnx.save_model(program.model_proto, buffer)
    return onnx.load_from_string(buffer.getvalue())


@cache
def untrained(name):
    """One of `NETWORKS`, from images f32[rows, 1, 8, 8] to ten scores (the encoder: probabilities)."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    batch = torch.export.Dim("rows")
    names = {"input_names": ["image"], "output_names": ["scores"]}
    return exported(NETWORKS[name](), torch.randn(2, 1, 8, 8), {0: batch}, **names)


@cache
def digits():
    """Rows to train on and rows to test on: images, labels."""
    bunch = load_digits()
    images, labels = (bunch.images / 16).astype(np.float32)[:, None], bunch.target.astype(np.int64)
    order = np.random.default_rng(5).permutation(len(labels))
    test, rest = order[:HOLD_OUT], order[HOLD_OUT:]
    return Rows({"image": images[rest]}, labels[rest]), Rows({"image": images[test]}, labels[test])


@cache
def trained(name, epochs=8):
    """One of `NETWORKS` trained on the digits by the library itself."""
    config = Training(optimizer=AdamW(learning_rate=4e-3), epochs=epochs, patience=None, held_out=0.1)
    return train(untrained(name), digits()[0], config).model


def answers(model, feeds):
    """The outputs of ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options).run(None, feeds)


def accuracy(model, rows=None):
    """On the test digits, in ONNX Runtime."""
    rows = rows or digits()[1]
    return float((answers(model, dict(rows.inputs))[0].argmax(-1) == rows.targets).mean())


@cache
def minilm(layers=2, heads=4, width=32, inner=48):
    """MiniLM's graph (`benchmarks.serving.minilm`) with few and random numbers in it."""
    generator = np.random.default_rng(4)
    shapes = {
        "embeddings.word_embeddings.weight": (100, width),
        "embeddings.position_embeddings.weight": (512, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        **_norm("embeddings.LayerNorm", width),
    }
    for number in range(layers):
        name = f"encoder.layer.{number}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= _dense(f"{name}.{part}", width, width)
        shapes |= _dense(f"{name}.intermediate.dense", width, inner) | _dense(f"{name}.output.dense", inner, width)
        shapes |= _norm(f"{name}.attention.output.LayerNorm", width) | _norm(f"{name}.output.LayerNorm", width)
    weights = {name: (generator.standard_normal(shape) / 4).astype(np.float32) for name, shape in shapes.items()}
    sizes = {"_LAYERS": layers, "_HEADS": heads, "_WIDTH": width}
    with tempfile.TemporaryDirectory() as directory, patch.multiple(benchmark, **sizes):
        benchmark._export(weights, Path(directory) / "minilm.onnx")
        return onnx.load(Path(directory) / "minilm.onnx")


def _dense(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
