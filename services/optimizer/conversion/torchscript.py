"""TorchScript: its code is looked through as text before it is loaded, and as graphs before it is run.

TorchScript computes, but it can also read and write files (`torch.save`, `from_file`), call operators of libraries,
and run a module's own `__setstate__` while it is loaded. All of that is refused. What remains is loaded from a fresh
archive of the vetted members, and only in the sandbox.

The file does not say what its inputs are: `config.json` does, beside it in a bundle or among its extra files
(`torch.jit.save(module, file, _extra_files={"config.json": …})`):
`{"inputs": [{"name": "x", "datatype": "FP32", "shape": ["batch", 8]}], "outputs": ["y"], "module": "a.b"}`.
`module` names a part to serve instead of the whole, for models that keep their state within.
"""

from __future__ import annotations

import io
import re
import zipfile
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import torch
from msgspec import Meta, Struct

from services.optimizer.conversion import pickles
from services.optimizer.conversion.exporting import exporting, flat, from_script
from services.optimizer.conversion.recognise import CONFIG
from services.optimizer.conversion.source import NotConvertible, first_line
from services.optimizer.rejections import Rejection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.optimizer.conversion.archives import Archive
    from services.optimizer.conversion.source import Source

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
_OPERATORS: Final = re.compile(r"(aten|prim)::\w+")
_NEVER: Final = frozenset({"aten::save", "aten::load", "aten::from_file", "aten::_from_file", "prim::PythonOp"})
_BATCH, _ROWS, _OTHER_EXAMPLE = "batch", 2, 16
_DTYPES: Final = {
    "FP64": torch.float64,
    "FP32": torch.float32,
    "FP16": torch.float16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT16": torch.int16,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}
_Name = Annotated[str, Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_]{0,99}\Z")]


class _Input(Struct, frozen=True, forbid_unknown_fields=True):
    name: _Name
    datatype: str
    shape: Annotated[tuple[Annotated[int, Meta(ge=1, le=1 << 28)] | _Name, ...], Meta(max_length=8)]


class _Config(Struct, frozen=True, forbid_unknown_fields=True):
    inputs: Annotated[tuple[_Input, ...], Meta(min_length=1, max_length=64)]
    outputs: Annotated[tuple[_Name, ...], Meta(max_length=64)] = ()
    module: Annotated[str, Meta(pattern=r"\A([A-Za-z_]\w*(\.\w+)*)?\Z", max_length=200)] = ""
    sizes: Annotated[dict[str, Annotated[int, Meta(ge=1, le=1 << 20)]], Meta(max_length=100)] = {}
    """Sizes of named dimensions that the model runs at, where 2 rows and 16 of everything else will not do."""


def convert(archive: Archive, member: str | None, content: bytes, threads: int) -> Source:
    """The script, from the file itself or from a member of a bundle.

    Raises:
        Rejection: it is damaged, does more than compute, or nobody says what its inputs are.
        NotConvertible: torch does not export it.
    """
    del content  # the archive was opened from it
    beside = archive.read(CONFIG) if member is not None and CONFIG in archive else None
    if member is not None:
        archive = archive.inner(member)
    config = _config(archive, beside)
    clean = vetted(archive)
    torch.set_num_threads(threads)
    with exporting():
        module: Any = torch.jit.load(io.BytesIO(clean), map_location="cpu").eval()  # type: ignore[no-untyped-call] # torch has it untyped
    for name in filter(None, config.module.split(".")):
        if name not in dict(module.named_children()):
            raise Rejection("invalid_bundle", f"The script has no part {config.module[:100]!r}")
        module = getattr(module, name)
    _check_operators(module)
    example = {each.name: _example(each, config.sizes) for each in config.inputs}
    dims = {
        each.name: {axis: dim for axis, dim in enumerate(each.shape) if isinstance(dim, str)} for each in config.inputs
    }
    names, free = _outputs(module, config, example)
    return from_script(module, example, dims | free, names, "TorchScript")


def vetted(archive: Archive) -> bytes:
    """The script's archive with its vetted members alone.

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
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as fresh:
        for name, member in kept.items():
            fresh.writestr(f"model/{name}", member)
    return buffer.getvalue()


def _check_code(name: str, content: bytes, size: int) -> None:
    if size > _MAX_CODE_BYTES:
        raise Rejection("invalid_model", f"{name[:100]!r} has {size} bytes of code")
    found = _REACHES_OUT.search(content.decode(errors="replace"))
    if found is not None:
        raise Rejection("unsafe_model", f"The code in {name[:100]!r} has {found.group()[:60]!r} in it")


def _check_operators(module: Any) -> None:
    """Every operator of every method of every part, before any is run."""
    for part in module.modules():
        script = part._c  # noqa: SLF001 - torch shows the methods of a loaded part nowhere else
        for name in script._method_names():  # noqa: SLF001 - as above
            for kind in _kinds(script._get_method(name).graph):  # noqa: SLF001 - as above
                if not _OPERATORS.fullmatch(kind) or kind in _NEVER:
                    raise Rejection("unsafe_model", f"The script calls {kind[:100]!r}")


def _kinds(graph: Any) -> Iterator[str]:
    pending = list(graph.nodes())
    while pending:
        node = pending.pop()
        yield node.kind()
        for block in node.blocks():
            pending += list(block.nodes())


def _config(archive: Archive, beside: bytes | None) -> _Config:
    extra = f"extra/{CONFIG}"
    content = beside if beside is not None else archive.read(extra) if extra in archive else None
    if content is None:
        found = (
            "The TorchScript file does not say what its inputs are: save it with _extra_files={'config.json': …}, or "
            "upload a zip of it and a config.json, as docs/formats.md has it"
        )
        raise Rejection("invalid_bundle", found)
    try:
        config = msgspec.json.decode(content, type=_Config)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as err:
        raise Rejection("invalid_bundle", f"config.json: {str(err)[:300]}") from err
    for each in config.inputs:
        if each.datatype not in _DTYPES:
            raise Rejection("invalid_bundle", f"config.json: datatype {each.datatype[:20]!r} is not known here")
    return config


def _example(about: _Input, sizes: dict[str, int]) -> torch.Tensor:
    shape = [
        dim if isinstance(dim, int) else sizes.get(dim, _ROWS if axis == 0 or dim == _BATCH else _OTHER_EXAMPLE)
        for axis, dim in enumerate(about.shape)
    ]
    elements = 1
    for dim in shape:
        elements *= dim
    if elements > _MAX_ELEMENTS:
        raise Rejection("invalid_bundle", f"config.json: input {about.name!r} has {elements} numbers")
    dtype = _DTYPES[about.datatype]
    return torch.rand(shape, dtype=dtype) if dtype.is_floating_point else torch.ones(shape, dtype=dtype)


@torch.no_grad()
def _outputs(
    module: Any, config: _Config, example: dict[str, torch.Tensor]
) -> tuple[list[str], dict[str, dict[int, str]]]:
    """Names of the outputs, and of their free axes: those that are longer where the inputs are.

    Raises:
        NotConvertible: it does not run on such inputs, or does not answer with tensors.
    """
    try:
        shapes = _shapes(module(*example.values()))
    except Exception as err:  # whatever the script raises
        raise NotConvertible(f"It does not run on the inputs of config.json: {first_line(err)}") from err
    if config.outputs and len(config.outputs) != len(shapes):
        raise Rejection(
            "invalid_bundle", f"config.json names {len(config.outputs)} outputs, the script has {len(shapes)}"
        )
    numbered = ["output"] if len(shapes) == 1 else [f"output_{index}" for index in range(len(shapes))]
    names = list(config.outputs) or numbered
    free: dict[str, dict[int, str]] = {name: {} for name in names}
    for dim in {dim for each in config.inputs for dim in each.shape if isinstance(dim, str)}:
        sizes = config.sizes | {dim: _longer(config, dim)}
        try:
            longer = _shapes(module(*(_example(each, sizes) for each in config.inputs)))
        except Exception:  # noqa: BLE001, S112 - of that dimension only the one size runs: nothing is free by it
            continue
        for name, before, after in zip(names, shapes, longer, strict=True):
            for axis, (short, long) in enumerate(zip(before, after, strict=False)):
                if short != long:
                    free[name][axis] = dim if long == sizes[dim] else f"{name}_{axis}"
    return names, free


def _longer(config: _Config, dim: str) -> int:
    """Another size of a dimension than the example's."""
    axes = [each.shape.index(dim) for each in config.inputs if dim in each.shape]
    return config.sizes.get(dim, _ROWS if 0 in axes or dim == _BATCH else _OTHER_EXAMPLE) + 1


def _shapes(answer: Any) -> list[tuple[int, ...]]:
    return [tuple(each.shape) for each in flat(answer)]
