"""A bundle: a version with all that belongs to it, in one zip that `aiaas models upload` understands once unpacked.

    model.onnx          the variant's bytes (`model.pt2` or `model.pt` where torch serves it)
    processing.json     the steps before and after the model, files by their names here; only if any are declared
    tokenizer-0.json …  and labels-0.txt …: what these steps name
    config.json         the runtime configuration and the signature
    provenance.json     what it was made of, back to the first upload, and what the gate measured
    README.md           how to run it

The same version gives the same bytes: entries are stored in this order, with a fixed time.
"""

from __future__ import annotations

import asyncio
import zipfile
from typing import TYPE_CHECKING, Any, Final

import msgspec

from services.optimizer.messages import EXPORT_FILE
from shared.processing import Labels, Tokenize
from shared.runtime_config import TORCH, shown

if TYPE_CHECKING:
    from pathlib import Path

    from services.optimizer.workspace import Workspace
    from shared.artifacts import Artifact
    from shared.registry import Model, Variant, Version

_FIXED_TIME: Final = (1980, 1, 1, 0, 0, 0)
_FILE_MODE: Final = 0o644 << 16
_MAX_ASSET_BYTES: Final = 256 * 1024 * 1024
_CHUNK_BYTES: Final = 1024 * 1024


async def made(space: Workspace, model: Model, version: Version, variant: Variant) -> Artifact:
    """The bundle, in the store.

    Raises:
        Rejection: something of it is not there.
        Unavailable, OSError: not its fault.
    """
    model_file = _model_file(version, variant)
    await space.fetch(variant.artifact, model_file, 2 * variant.artifact.byte_size + 1)
    files = [model_file]
    texts: dict[str, bytes] = {}
    if version.processing is not None:
        declared, named = processing(version)
        for name, artifact in named.items():
            await space.fetch(artifact, name, _MAX_ASSET_BYTES)
        texts["processing.json"] = _json(declared)
        files += named
    texts["config.json"] = _json(config(version, variant))
    texts["provenance.json"] = _json(provenance(model, version, variant))
    texts["README.md"] = readme(version, variant, model_file).encode()
    await asyncio.to_thread(_write, space.directory, files, texts)
    return await space.keep(EXPORT_FILE)


def processing(version: Version) -> tuple[Any, dict[str, Artifact]]:
    """The declaration with files by their names in the bundle, as a user writes it; and these files."""
    assert version.processing is not None  # noqa: S101 - asked for by the caller
    plain: Any = msgspec.to_builtins(version.processing)
    named: dict[str, Artifact] = {}
    for index, step in enumerate(version.processing.preprocessing):
        if isinstance(step, Tokenize):
            name = f"tokenizer-{index}.json"
            named[name] = step.tokenizer
            plain["preprocessing"][index]["tokenizer"] = name
    for index, after in enumerate(version.processing.postprocessing):
        if isinstance(after, Labels) and not isinstance(after.labels, tuple | list):
            name = f"labels-{index}.txt"
            named[name] = after.labels
            plain["postprocessing"][index]["labels"] = name
    return plain, named


def config(version: Version, variant: Variant) -> dict[str, Any]:
    """How it is run."""
    return {
        "engine": variant.engine,
        "batch_cap": variant.batch_cap,
        "signature": msgspec.to_builtins(variant.signature),
        "runtime": {} if version.runtime is None else shown(version.runtime),
    }


def provenance(model: Model, version: Version, variant: Variant) -> dict[str, Any]:
    """The version, its variant, and the versions that it was trained from, each with what it was made of."""
    return {
        "model": model.name,
        "version": version.number,
        "variant": variant.name,
        "sha256": variant.artifact.sha256,
        "reason": variant.reason,
        "made_of": msgspec.to_builtins(variant.provenance),
        "measurements": msgspec.to_builtins(variant.measurements),
        "comparison": msgspec.to_builtins(version.comparison),
        "lineage": [_ancestor(each) for each in _lineage(model, version)],
    }


def _lineage(model: Model, version: Version) -> list[Version]:
    """The version, its parent, and so on: a parent is always there before, so that this ends."""
    found = [version]
    while (parent := found[-1].parent) is not None and parent in model.versions and len(found) <= len(model.versions):
        found.append(model.versions[parent])
    return found


def _ancestor(version: Version) -> dict[str, Any]:
    return {
        "version": version.number,
        "parent": version.parent,
        "upload_id": version.upload_id,
        "format": version.format,
        "sha256": version.artifact.sha256,
        "uploaded_ms": version.uploaded_ms,
        "training": msgspec.to_builtins(version.training),
        "optimization": msgspec.to_builtins(version.optimization, str_keys=True),
    }


def _model_file(version: Version, variant: Variant) -> str:
    if variant.engine != TORCH:
        return "model.onnx"
    return "model.pt" if version.program_format == "torchscript" else "model.pt2"


def readme(version: Version, variant: Variant, model_file: str) -> str:
    """For whoever unpacks it."""
    tensors = "\n".join(
        f"- {what} `{spec.name}`: {spec.datatype} {list(spec.shape)}"
        for what, specs in (("input", variant.signature.inputs), ("output", variant.signature.outputs))
        for spec in specs
    )
    steps = " --processing processing.json" if version.processing is not None else ""
    warning = "  # code can run when such a file is loaded: trust its origin"
    run = {
        "model.onnx": "onnxruntime.InferenceSession('model.onnx').run(None, {'NAME': array})",
        "model.pt2": "torch.export.load('model.pt2').module()(*inputs)" + warning,
        "model.pt": "torch.jit.load('model.pt')(*inputs)" + warning,
    }[model_file]
    return f"""# {version.model}, version {version.number} ({variant.name})

{tensors}

Run it by itself, without the steps before and after it:

```python
{run}
```

Serve it with them, by aiaas: `aiaas models upload {model_file} --name {version.model}{steps} --wait`

`provenance.json` says what it was made of; SHA-256 of the model file: `{variant.artifact.sha256}`.
"""


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=2) + b"\n"


def _write(directory: Path, files: list[str], texts: dict[str, bytes]) -> None:
    with zipfile.ZipFile(directory / EXPORT_FILE, "x", zipfile.ZIP_STORED) as archive:
        for name in files:
            with (directory / name).open("rb") as content, archive.open(_entry(name), "w", force_zip64=True) as entry:
                while chunk := content.read(_CHUNK_BYTES):
                    entry.write(chunk)
        for name, text in texts.items():
            archive.writestr(_entry(name), text)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _FIXED_TIME)
    entry.external_attr = _FILE_MODE
    return entry
