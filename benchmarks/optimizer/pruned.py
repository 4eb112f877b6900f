"""A CNN on digits, from its ONNX alone: pruned by half, healed, quantized; how much faster that is, and what it costs.

    python -m benchmarks.optimizer.pruned make [--directory .bench]
    python -m benchmarks.optimizer.pruned measure [--directory .bench] [--out docs/pruned]

`make` trains networks of several widths with torch, and lets the optimizer's own code do the rest, which takes minutes;
`measure` takes seconds, and wants a quiet machine. Speed is the median of single runs in one session each, fp32 and the
result by turns, on one thread, at 1, 8 and 32 rows; `mean` is the geometric mean of the three ratios. Accuracy is on
600 digits that nothing was trained on. Writes `{out}.json` and `{out}.md`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx

from benchmarks.optimizer.models import digits_net
from services.cli.demo import digits
from services.optimizer.recipes.build import build
from services.optimizer.recipes.configs import StaticQdq
from services.optimizer.sandbox import signature
from services.optimizer.sandbox.engine import Engine
from services.optimizer.training.config import AdamW, Training
from services.optimizer.training.distil import heal
from services.optimizer.training.prune import Pruning, prune
from shared.machine import isa

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTHS: Final = (16, 64, 128)
"""Channels of the first two convolutions; the last two have twice as many."""
SIZES: Final = (1, 8, 32)
_TURNS: Final = 300
_EPOCHS: Final = 20
_CALIBRATION: Final = 128


def make(directory: Path) -> None:
    """Train, prune by half, heal on the answers of the original, quantize; each kept as a file."""
    images, *_ = digits.digits()
    for width in WIDTHS:
        original = onnx.load_from_string(digits_net(directory, width))
        pruned = prune(original, Pruning(ratio=0.5))
        config = Training(optimizer=AdamW(learning_rate=2e-3, weight_decay=0.0), clip_norm=1.0, epochs=_EPOCHS, seed=7)
        healed = heal(pruned.model, original, {"image": images}, config).model
        made = build(StaticQdq(), healed, [{"image": image[None]} for image in images[:_CALIBRATION]])
        for name, model in (("pruned", healed), ("pruned-int8", made)):
            (directory / f"{name}-{width}.onnx").write_bytes(model.SerializeToString())
        print(f"width {width}: {pruned.parameters_before} to {pruned.parameters_after} parameters", flush=True)


def measure(directory: Path) -> dict[str, Any]:
    """The figures of each width."""
    found = []
    for width in WIDTHS:
        contents = [
            digits_net(directory, width),
            *((directory / f"{name}-{width}.onnx").read_bytes() for name in ("pruned", "pruned-int8")),
        ]
        engines = [_engine(content) for content in contents]
        speeds = {size: _medians_s(engines, size) for size in SIZES}
        found.append(
            {
                "width": width,
                "bytes": [len(content) for content in contents],
                "accuracy": [_accuracy(engine) for engine in engines],
                "seconds": speeds,
                "speedup": {size: medians[0] / medians[2] for size, medians in speeds.items()},
                "mean": float(np.exp(np.mean([np.log(each[0] / each[2]) for each in speeds.values()]))),
            }
        )
    return {"machine": isa(), "threads": 1, "turns": _TURNS, "networks": found}


def _engine(content: bytes) -> Engine:
    return Engine(content, signature.read(onnx.load_from_string(content)), threads=1, run_timeout_s=10.0)


def _accuracy(engine: Engine) -> float:
    _, _, images, labels = digits.digits()
    return float((engine.run({"image": images})[0].argmax(-1) == labels).mean())


def _medians_s(engines: Sequence[Engine], size: int) -> list[float]:
    rows = {"image": digits.digits()[2][:size]}
    times: list[list[float]] = [[] for _ in engines]
    for turn in range(_TURNS + 10):
        for engine, taken in zip(engines, times, strict=True):
            took_s = engine.duration_s(rows)
            if turn >= 10:  # the first runs of a shape allocate
                taken.append(took_s)
    return [statistics.median(taken) for taken in times]


def rendered(found: dict[str, Any]) -> str:
    """The figures as a table."""
    lines = [
        "# A CNN on digits, pruned by half, healed and quantized",
        "",
        "Made by `python -m benchmarks.optimizer.pruned`, which says what is measured. On the machine's two cores",
        "other work went on: ratios hold, single figures are rough.",
        "",
        f"Measured on {found['machine']}, 1 thread, medians of {found['turns']} runs by turns.",
        "",
        "| channels | size of fp32, pruned, and int8 | accuracy of 600 | int8 over fp32 at 1 / 8 / 32 rows | mean |",
        "|---|---|---|---|---|",
    ]
    for each in found["networks"]:
        sizes = ", ".join(f"{size / 1024:.0f} KiB" for size in each["bytes"])
        accuracy = ", ".join(f"{value:.4f}" for value in each["accuracy"])
        ratios = " / ".join(f"{each['speedup'][size]:.2f}" for size in SIZES)
        lines.append(f"| {each['width']}, {2 * each['width']} | {sizes} | {accuracy} | {ratios} | {each['mean']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "measure"])
    parser.add_argument("--directory", type=Path, default=Path(".bench"))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    asked.directory.mkdir(parents=True, exist_ok=True)
    if asked.what == "make":
        make(asked.directory)
        return
    found = measure(asked.directory)
    print(rendered(found))
    if asked.out is not None:
        asked.out.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
        asked.out.with_suffix(".md").write_text(rendered(found))


if __name__ == "__main__":
    main()
