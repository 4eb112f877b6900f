"""What a file looks like that is not ONNX: by its first bytes, in words for its uploader."""

from __future__ import annotations

import io
import zipfile
from typing import Final

_AT_START: Final = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras or h5py)"),
    (b"GGUF", "a GGUF file (llama.cpp)"),
    (b"ORTM", "an ORT-format file: upload the ONNX file that it was made from"),
    (b"\x1f\x8b", "gzip-compressed: upload it unpacked"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF"),
    (b"\x7fELF", "a program"),
    (b"<", "HTML or XML, perhaps the error page of a failed download"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the real file with git lfs pull"),
    (b"{", "JSON"),
)
_PICKLE_PROTOCOLS: Final = range(2, 6)
_SAFETENSORS_HEADER_BYTES: Final = 8
_LISTED_NAMES: Final = 200


def describe(content: bytes) -> str | None:
    """What the file seems to be, None if nothing is known about such bytes."""
    if not content:
        return "empty"
    if content.startswith(b"PK\x03\x04"):
        return _zip(content)
    if content[0] == 0x80 and len(content) > 1 and content[1] in _PICKLE_PROTOCOLS:  # noqa: PLR2004 - pickle's PROTO
        return (
            "a Python pickle: it would run code when loaded, so it is never accepted; convert it where you trained it"
        )
    length = int.from_bytes(content[:_SAFETENSORS_HEADER_BYTES], "little")
    if content[_SAFETENSORS_HEADER_BYTES : _SAFETENSORS_HEADER_BYTES + 1] == b"{" and length <= len(content):
        return "a safetensors file: weights without a model; load them into their class and export that"
    if content[4:8] == b"TFL3":
        return "a TensorFlow Lite file"
    return next((what for magic, what in _AT_START if content.startswith(magic)), None)


def _zip(content: bytes) -> str:
    """Zip archives hold half of all model formats; the names inside tell them apart."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()[:_LISTED_NAMES]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return "a damaged zip archive"
    endings = tuple(name.rpartition("/")[2] for name in names)
    if "archive_format" in endings or any(name.startswith("models/") or "/models/" in name for name in names):
        return "a PyTorch .pt2 archive: export the same program with torch.onnx.export(program, dynamo=True)"
    if "constants.pkl" in endings:
        return "a TorchScript archive: export the module it was made from"
    if "data.pkl" in endings:
        return "a PyTorch checkpoint (.pt, a zip around a pickle): load it where you trained it and export the module"
    if any(name.endswith(".npy") for name in names):
        return "a NumPy .npz archive"
    if any(name.endswith(".keras") or name in ("config.json", "model.weights.h5") for name in endings):
        return "a Keras archive"
    if onnx := next((name for name in names if name.endswith(".onnx")), None):
        return f"a zip archive: unpack it and upload {onnx[:100]!r} by itself"
    return "a zip archive"
