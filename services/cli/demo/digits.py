"""The demo's own model: a small CNN that reads handwritten digits, trained here in seconds.

Scikit-learn brings 1797 digits of 8 by 8 pixels; two thirds train, one third is kept for the demo's requests. Seeds and
one thread make it the same model at each run on a machine. The file is cached under the digest of this source: change
the recipe and it is trained again. It is exported as a user would: `torch.onnx.export`, a batch dimension by name.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    Images = npt.NDArray[np.float32]
    Labels = npt.NDArray[np.int64]

INPUT, OUTPUT = "image", "scores"
_SEED = 7
_EPOCHS = 12
_BATCH_ROWS = 64
_OPSET = 20


def digits() -> tuple[Images, Labels, Images, Labels]:
    """Training images f32[1197,1,8,8] in 0..1 with labels i64[1197], then test images f32[600,1,8,8] and labels."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - heavy, and only the demo has it
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    bunch = load_digits()
    images = (bunch.images / 16.0).astype(np.float32)[:, None]
    train, test, train_labels, test_labels = train_test_split(
        images, bunch.target.astype(np.int64), test_size=600, random_state=_SEED, stratify=bunch.target
    )
    return train, train_labels, test, test_labels


def cached_model(cache_dir: Path) -> tuple[Path, bool]:
    """The exported model's file, and whether it had to be trained for that."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    path = cache_dir / f"digits-cnn-{recipe}.onnx"
    if path.exists():
        return path, False
    cache_dir.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    images, labels, _, _ = digits()
    _export(_train(images, labels), unfinished)
    unfinished.replace(path)
    return path, True


def _train(images: Images, labels: Labels) -> torch.nn.Module:
    """A network of two convolutions, trained with Adam over a one-cycle learning rate."""
    import torch  # noqa: PLC0415 - heavy, and only the demo has it
    from torch import nn  # noqa: PLC0415

    torch.manual_seed(_SEED)
    torch.set_num_threads(1)  # sums in one order: the same weights each time
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(32 * 4 * 4, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )  # fmt: skip - one block of the network a line
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(model.parameters())
    steps = _EPOCHS * -(-len(x) // _BATCH_ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(x)).split(_BATCH_ROWS):  # type: ignore[no-untyped-call] # torch has it untyped
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call] # torch has it untyped
            optimizer.step()
            schedule.step()
    return model.eval()


def _export(model: torch.nn.Module, path: Path) -> None:
    """Write the model as one ONNX file, `image` f32[batch,1,8,8] to `scores` f32[batch,10]."""
    import torch  # noqa: PLC0415 - heavy, and only the demo has it

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own use of what torch deprecates
        torch.onnx.export(
            model,
            (torch.zeros(2, 1, 8, 8),),
            path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=_OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )  # fmt: skip - what it is, then how it is written
