"""Pickles, read as data: which globals one would load, without loading any. Pure.

TorchScript keeps its modules' attributes in a pickle. torch reads it with an unpickler of its own that knows a fixed
set of globals; here it is made sure that a pickle names no others, so that it does not come to that.
"""

from __future__ import annotations

import pickletools
from typing import Final

from services.optimizer.rejections import Rejection

_MAX_BYTES: Final = 64 * 1024 * 1024
_ALLOWED: Final = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        *(f"torch.jit._pickle build_{kind}list" for kind in ("int", "tensor", "double", "bool")),
        "torch.jit._pickle restore_type_tag",
        *(
            f"torch {kind}Storage"
            for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
        ),
    }
)
_OTHERS: Final = frozenset({"STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4", "PERSID"})
"""Other ways to load a global, or something else."""
_OURS: Final = "__torch__"


def check(content: bytes, what: str) -> None:
    """Look whether a pickle names only TorchScript's own classes and functions.

    Raises:
        Rejection: it names others, or is none.
    """
    if len(content) > _MAX_BYTES:
        raise Rejection("invalid_model", f"{what} has {len(content)} bytes")
    try:
        for opcode, argument, _ in pickletools.genops(content):
            _look_at(opcode.name, str(argument), what)
    except Rejection:
        raise
    except Exception as err:  # pickletools raises what it likes on garbage
        raise Rejection("invalid_model", f"{what} is not the pickle that it should be: {str(err)[:200]}") from err


def _look_at(opcode: str, argument: str, what: str) -> None:
    if opcode == "GLOBAL":
        _check(argument, what)
    elif opcode in _OTHERS:
        raise Rejection("unsafe_model", f"{what} is a pickle with {opcode}, which TorchScript never writes")


def _check(name: str, what: str) -> None:
    module = name.partition(" ")[0]
    if name not in _ALLOWED and module != _OURS and not module.startswith(f"{_OURS}."):
        raise Rejection("unsafe_model", f"{what} is a pickle that would load {name[:100]!r}")
    if ".torch.classes" in module:
        raise Rejection("unsafe_model", f"{what} holds an object of a custom class ({name[:100]!r})")
