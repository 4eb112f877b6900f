"""What an upload is, by its bytes and never by its name.

Archives are told by what lies in them. What is not taken is named in words, so that its uploader knows what to do;
what is not known at all is left to the ONNX parser, since ONNX has no mark of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.optimizer.conversion import archives
from services.optimizer.formats import ONNX
from services.optimizer.rejections import Rejection

if TYPE_CHECKING:
    from services.optimizer.conversion.archives import Archive

_AT_HOME: Final = "`aiaas models convert` converts it where you trained it"
_AT_START: Final = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras or h5py): save the model as .keras, or as a SavedModel"),
    (b"GGUF", "a GGUF file (llama.cpp)"),
    (b"ORTM", "an ORT-format file: upload the ONNX file that it was made from"),
    (b"\x1f\x8b", "gzip-compressed: upload it unpacked"),
    (b"BZh", "bzip2-compressed: upload it unpacked"),
    (b"\xfd7zXZ", "xz-compressed: upload it unpacked"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF"),
    (b"\x7fELF", "a program"),
    (b"<", "HTML or XML, perhaps the error page of a failed download"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the real file with git lfs pull"),
    (b"{", "JSON"),
)
_PICKLE_PROTOCOLS: Final = range(2, 6)
_OLD_PICKLE: Final = (b"(lp", b"(dp", b"ccopy_reg\n", b"cos\n", b"cposix\n", b"c__builtin__\n", b"cbuiltins\n", b"(c")
"""How pickles of protocol 0 begin: lists, dicts, and what loads a global."""
_SAFETENSORS_HEADER_BYTES: Final = 8
_KERAS: Final = frozenset({"config.json", "metadata.json", "model.weights.h5"})
CONFIG: Final = "config.json"


@dataclass(frozen=True)
class Recognised:
    """A format of `FORMATS`; of an archive, with it opened, and the member that is the model if there is one."""

    format: str
    archive: Archive | None = None
    member: str | None = None


def recognise(content: bytes, limit_bytes: int) -> Recognised:
    """The format of an upload; `onnx` for what is of no other known kind.

    Raises:
        Rejection: it is of a kind that is not taken, or an archive that is not safe to open.
    """
    if archives.is_zip(content) or archives.is_tar(content):
        return _archived(archives.opened(content, limit_bytes))
    if content[4:8] == b"TFL3":
        return Recognised("tflite")
    return Recognised(ONNX)


def describe(content: bytes) -> str | None:
    """What a file seems to be that is no ONNX file, None if nothing is known about such bytes."""
    if not content:
        return "empty"
    if content[0] == 0x80 and len(content) > 1 and content[1] in _PICKLE_PROTOCOLS:  # noqa: PLR2004 - pickle's PROTO
        return f"a Python pickle: it would run code when loaded, so it is never accepted; {_AT_HOME}"
    if content.startswith(_OLD_PICKLE):
        return f"a Python pickle of an old kind: it would run code when loaded, so it is never accepted; {_AT_HOME}"
    if content.startswith((b"x\x9c", b"ZF")):
        return f"zlib-compressed, as joblib writes pickles: it is never accepted; {_AT_HOME}"
    length = int.from_bytes(content[:_SAFETENSORS_HEADER_BYTES], "little")
    if content[_SAFETENSORS_HEADER_BYTES : _SAFETENSORS_HEADER_BYTES + 1] == b"{" and length <= len(content):
        return "a safetensors file: weights without a model; upload a zip of it and a config.json that says which"
    return next((what for magic, what in _AT_START if content.startswith(magic)), None)


def _archived(archive: Archive) -> Recognised:
    names = set(archive.sizes)
    endings = {name.rpartition("/")[2] for name in names}
    if names >= _KERAS:
        return Recognised("keras", archive)
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return Recognised("torchscript", archive)
    if "archive_format" in names and any(name.startswith("models/") for name in names):
        return Recognised("pt2", archive)
    if "saved_model.pb" in names:
        return Recognised("savedmodel", archive)
    if CONFIG in names and (one := _only(archive, ".safetensors")):
        return Recognised("safetensors", archive, one)
    if (inner := _torch_inside(archive)) is not None:
        return inner
    if one := _only(archive, ".onnx"):
        return Recognised("onnx-bundle", archive, one)
    raise Rejection("unsupported_format", f"The file is {_other(names, endings)}")


def _only(archive: Archive, ending: str) -> str | None:
    found = archive.named(ending)
    if len(found) > 1:
        raise Rejection(
            "invalid_bundle", f"The archive has {len(found)} members that end in {ending}: one is the model"
        )
    return found[0] if found else None


def _torch_inside(archive: Archive) -> Recognised | None:
    """A TorchScript archive or an exported program, with a `config.json` beside it that says what it takes."""
    for name in (*archive.named(".pt"), *archive.named(".pt2"), *archive.named(".jit")):
        content = archive.read(name)
        if not archives.is_zip(content):
            continue
        found = recognise(content, archive.limit_bytes)
        if found.format in ("torchscript", "pt2"):
            return Recognised(found.format, archive, name)
    return None


def _other(names: set[str], endings: set[str]) -> str:
    """In words: an archive that is not taken."""
    if "data.pkl" in endings:
        return f"a PyTorch checkpoint (.pt, a zip around a pickle): loading it could run code; {_AT_HOME}"
    if any(name.endswith((".pkl", ".pickle", ".joblib")) for name in endings):
        return f"an archive with a pickle in it: loading it could run code; {_AT_HOME}"
    if any(name.endswith(".npy") for name in endings):
        return "a NumPy .npz archive"
    if any(name.endswith(".keras") for name in endings):
        return "an archive around a .keras file: upload that itself"
    if any(name.endswith(".safetensors") for name in endings):
        return "an archive with safetensors and no config.json, which says of which architecture they are"
    listed = ", ".join(sorted(names)[:5])[:200]
    return f"an archive of {len(names)} files that are no known model ({listed})"
