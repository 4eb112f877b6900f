"""The formats that uploads may have: what each is called, what converting it takes, and who may upload it.

`sandbox` tells by an upload's bytes which one it is. Here is what follows from that, for the service: libraries that
the child needs, and whether a tenant has to be let in, since loading the format can run code of the file's (see
docs/formats.md). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from services.optimizer.rejections import Rejection

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

FormatName = Literal["onnx", "onnx-bundle", "safetensors", "pt2", "torchscript", "savedmodel", "keras", "tflite"]
_TENSORFLOW: Final = ("tensorflow", "tf2onnx")
_TORCH: Final = ("torch", "onnxscript")


@dataclass(frozen=True)
class Format:
    """What the platform knows of a format."""

    words: str
    """What it is called in sentences."""
    needs: tuple[str, ...] = ()
    """Libraries, as a child's `tools` name them."""
    opt_in: str | None = None
    """The setting that lists the tenants who may upload it; None: all may."""


ONNX: Final = "onnx"
FORMATS: Final[Mapping[str, Format]] = {
    ONNX: Format("an ONNX file"),
    "onnx-bundle": Format("an ONNX file with its data beside it"),
    "safetensors": Format("safetensors with a config.json", _TORCH),
    "pt2": Format("a torch.export program (.pt2)", _TORCH, "AIAAS_PT2_TENANTS"),
    "torchscript": Format("TorchScript", _TORCH, "AIAAS_TORCHSCRIPT_TENANTS"),
    "savedmodel": Format("a TensorFlow SavedModel", _TENSORFLOW),
    "keras": Format("a Keras model (.keras)", _TENSORFLOW),
    "tflite": Format("a TensorFlow Lite model", _TENSORFLOW),
}
TORCHS_OWN: Final = ("pt2", "torchscript")
"""What torch runs as it is, where it does not become ONNX."""
ANYONE: Final = "*"


def lacking(needs: Collection[str], tools: Collection[str]) -> tuple[str, ...]:
    """What is needed and not there."""
    return tuple(need for need in needs if need not in tools)


def check_allowed(name: str, tenant: str | None, allowed: Mapping[str, Collection[str]]) -> None:
    """Look whether a tenant may upload the format; `allowed` are tenants by the setting that lists them.

    Raises:
        Rejection: it may not.
    """
    known = FORMATS.get(name)
    if known is None:
        raise Rejection("unsupported_format", f"The file is of a format {name[:40]!r} that is not known here")
    if known.opt_in is None:
        return
    tenants = allowed.get(known.opt_in, ())
    if ANYONE in tenants or (tenant is not None and tenant in tenants):
        return
    whose = "uploads without a tenant" if tenant is None else f"tenant {tenant!r}"
    found = f"The file is {known.words}, which {known.opt_in} of the optimizer does not allow {whose} to upload"
    raise Rejection("format_not_allowed", found)
