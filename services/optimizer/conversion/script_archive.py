"""TorchScript files before torch sees them: their code as text, their pickles as data, and what says what they take.

TorchScript computes, but it can also read and write files (`torch.save`, `from_file`), call operators of libraries,
and run a module's own `__setstate__` while it is loaded. All of that is refused, and what remains is written into a
fresh archive. Pure; no torch.

The file does not say what its inputs are: `config.json` does, beside it in a bundle or among its extra files
(`torch.jit.save(module, file, _extra_files={"config.json": …})`):
`{"inputs": [{"name": "x", "datatype": "FP32", "shape": ["batch", 8]}], "outputs": ["y"], "module": "a.b"}`.
`module` names a part to serve instead of the whole, for models that keep their state within.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from services.optimizer.conversion import pickles
from services.optimizer.conversion.archives import zipped
from services.optimizer.conversion.recognise import CONFIG
from services.optimizer.rejections import Rejection

if TYPE_CHECKING:
    from services.optimizer.conversion.archives import Archive

_MAX_CODE_BYTES: Final = 16 * 1024 * 1024
_MAX_ELEMENTS: Final = 1 << 28
_KNOWN: Final = re.compile(
    r"code/[\w./]+\.py(\.debug_pkl)?|data\.pkl|constants\.pkl|(data|constants)/\d+|version|byteorder|\.data/\w+"
    r"|extra/[\w.-]+|attributes\.pkl|attributes/\d+"
)
_LEFT_OUT: Final = re.compile(r".*\.debug_pkl|extra/.*")
_REACHES_OUT: Final = re.compile(
    r"torch\.(save|load|from_file|_from_file|classes)\b|\bops\.(?!prim\b|aten\b)\w+|__setstate__|__getstate__|\b__import__\b"
)
_Name = Annotated[str, Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_]{0,99}\Z")]


class Input(Struct, frozen=True, forbid_unknown_fields=True):
    """An input: a whole number in `shape` is fixed, a name is a free dimension."""

    name: _Name
    datatype: Literal["FP64", "FP32", "FP16", "INT64", "INT32", "INT16", "INT8", "UINT8", "BOOL"]
    shape: Annotated[tuple[Annotated[int, Meta(ge=1, le=1 << 28)] | _Name, ...], Meta(max_length=8)]


class Takes(Struct, frozen=True, forbid_unknown_fields=True):
    """A `config.json` of TorchScript."""

    inputs: Annotated[tuple[Input, ...], Meta(min_length=1, max_length=64)]
    outputs: Annotated[tuple[_Name, ...], Meta(max_length=64)] = ()
    module: Annotated[str, Meta(pattern=r"\A([A-Za-z_]\w*(\.\w+)*)?\Z", max_length=200)] = ""
    sizes: Annotated[dict[str, Annotated[int, Meta(ge=1, le=1 << 20)]], Meta(max_length=100)] = {}
    """Sizes of named dimensions that the model runs at, where 2 rows and 16 of everything else will not do."""


def vetted(archive: Archive, config: Takes) -> bytes:
    """The script's archive with its vetted members alone, and with what it takes.

    Raises:
        Rejection: something in it does more than compute.
    """
    kept = {}
    for name, size in archive.sizes.items():
        if not _KNOWN.fullmatch(name):
            raise Rejection("unsafe_model", f"The archive holds {name[:100]!r}, which is no part of TorchScript")
        if _LEFT_OUT.fullmatch(name):
            continue
        member = archive.read(name)
        if name.endswith(".py"):
            _check_code(name, member, size)
        elif name.endswith(".pkl"):
            pickles.check(member, name)
        kept[name] = member
    return zipped(kept | {f"extra/{CONFIG}": msgspec.json.encode(config)})


def _check_code(name: str, content: bytes, size: int) -> None:
    if size > _MAX_CODE_BYTES:
        raise Rejection("invalid_model", f"{name[:100]!r} has {size} bytes of code")
    found = _REACHES_OUT.search(content.decode(errors="replace"))
    if found is not None:
        raise Rejection("unsafe_model", f"The code in {name[:100]!r} has {found.group()[:60]!r} in it")


def takes(archive: Archive, beside: bytes | None) -> Takes:
    """What the script takes, as the file `beside` it says, or one within.

    Raises:
        Rejection: neither is there, or it is not as it should be.
    """
    extra = f"extra/{CONFIG}"
    content = beside if beside is not None else archive.read(extra) if extra in archive else None
    if content is None:
        found = (
            "The TorchScript file does not say what its inputs are: save it with _extra_files={'config.json': …}, or "
            "upload a zip of it and a config.json, as docs/formats.md has it"
        )
        raise Rejection("invalid_bundle", found)
    try:
        return msgspec.json.decode(content, type=Takes)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as err:
        raise Rejection("invalid_bundle", f"config.json: {str(err)[:300]}") from err
