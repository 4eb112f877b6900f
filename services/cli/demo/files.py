"""Real files for Magika, and what its model wants of them.

Magika (the PyPI package `magika`) tells 214 types of content apart by a small network over a file's first and last
bytes. The package's own code runs the model itself; here the model runs on the platform, so the thirty lines that turn
a file into its input, and scores into a label, are done here as the package's configuration says
(`feature extraction v2` in its `magika.py`).
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INPUT = "bytes"
_HERE = Path(__file__).parent
_REPOSITORY = _HERE.parents[2]


@dataclass(frozen=True, slots=True)
class Sample:
    """A file to identify, and the label that is right for it."""

    name: str
    content: bytes
    label: str


class Magika:
    """Magika's model file, and the configuration that its release comes with."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec(
            "magika"
        )  # not imported: its import loads a second ONNX Runtime session's worth
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError("No module named 'magika'", name="magika")
        release = next((Path(spec.submodule_search_locations[0]) / "models").iterdir())
        self.model_path = release / "model.onnx"
        self._config: dict[str, Any] = json.loads((release / "config.min.json").read_text())

    def features(self, content: bytes) -> list[int]:
        """The model's input for a file: the first and last bytes without outer white space, padded to 2048 tokens."""
        config = self._config
        head = content[: config["block_size"]].lstrip()[: config["beg_size"]]
        tail = content[-config["block_size"] :].rstrip()[-config["end_size"] :]
        padding = [config["padding_token"]]
        before_tail = padding * (config["end_size"] - len(tail))
        return [*head, *padding * (config["beg_size"] - len(head)), *before_tail, *tail]

    def label(self, scores: list[float]) -> tuple[str, float]:
        """The best label and its score."""
        best = max(range(len(scores)), key=scores.__getitem__)
        return self._config["target_labels_space"][best], scores[best]


def samples(model_path: Path) -> list[Sample]:
    """Files of this repository and of its packages, and some that are made here; each with its right label."""
    ours = {
        "README.md": "markdown",
        "Makefile": "makefile",
        "Dockerfile": "dockerfile",
        "pyproject.toml": "toml",
        "services/cli/kafka/pom.xml": "xml",
        "services/cli/demo/files.py": "python",
    }
    found = [(_REPOSITORY / name, name, label) for name, label in ours.items()]
    found.append((model_path, model_path.name, "onnx"))
    read = [Sample(name, path.read_bytes(), label) for path, name, label in found if path.exists()]
    made = [
        Sample("checkers.png", _png(64), "png"),
        Sample("squares.zip", _zip(), "zip"),
        Sample("sources.tar.gz", _tar_gz(_HERE), "gzip"),
        Sample("numbers.sqlite", _sqlite(), "sqlite"),
    ]
    return read + made


def _png(side: int) -> bytes:
    """A chessboard of `side` by `side` grey pixels (https://www.w3.org/TR/png/)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(255 * ((x // 8 + y // 8) % 2) for x in range(side)) for y in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _zip() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for table in range(10):
            archive.writestr(f"data/{table}.csv", "\n".join(f"{n},{n * n}" for n in range(300)))
    return content.getvalue()


def _tar_gz(directory: Path) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for path in sorted(directory.glob("*.py")):
            archive.add(path, path.name)
    return gzip.compress(content.getvalue())


def _sqlite() -> bytes:
    with sqlite3.connect(":memory:") as database:
        database.execute("CREATE TABLE numbers (value INTEGER, square INTEGER)")
        database.executemany("INSERT INTO numbers VALUES (?, ?)", [(n, n * n) for n in range(100)])
        database.commit()
        return database.serialize()
