"""The configuration in a `.keras` archive, before Keras sees it. Pure.

Keras builds what the configuration names: classes by module and name, and for `Lambda` layers code from bytes. Here it
is made sure that every class is one of Keras's own layers, initializers and so on, and none of those that run code or
read files. Keras's own safe mode is on besides.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from services.optimizer.conversion.source import NotConvertible
from services.optimizer.rejections import Rejection

if TYPE_CHECKING:
    from services.optimizer.conversion.archives import Archive

_MAX_BYTES: Final = 16 * 1024 * 1024
_MAX_DEPTH: Final = 64
_RUNS_CODE: Final = frozenset(
    {"Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "FlaxLayer", "JaxLayer", "MultiBackendLayer"}
)
_READS_FILES: Final = frozenset({"StringLookup", "IntegerLookup", "TextVectorization", "IndexLookup"})
_MODULES: Final = ("keras", "keras.layers", "keras.initializers", "keras.regularizers", "keras.constraints")
_OTHERS: Final = ("keras.optimizers", "keras.losses", "keras.metrics", "keras.activations", "keras.dtype_policies")
_BUILTINS: Final = ("builtins", None)
_KNOWN_FILES: Final = frozenset({"config.json", "metadata.json", "model.weights.h5"})


def check(archive: Archive) -> None:
    """Look at the archive's members and its configuration.

    Raises:
        Rejection: something in it would do more than compute.
        NotConvertible: it has layers that are not Keras's own.
    """
    for name in archive.sizes:
        if name not in _KNOWN_FILES:
            raise Rejection("unsafe_model", f"The .keras archive holds {name[:100]!r}")
    if archive.sizes["config.json"] > _MAX_BYTES:
        raise Rejection("invalid_model", "config.json is too large")
    try:
        pending: list[tuple[Any, int]] = [(json.loads(archive.read("config.json")), 0)]
    except (ValueError, RecursionError) as err:
        raise Rejection("invalid_model", f"config.json does not parse: {str(err)[:200]}") from err
    while pending:
        part, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise Rejection("invalid_model", "config.json is nested too deeply")
        if isinstance(part, dict):
            if "class_name" in part:
                _check_class(part)
            pending += ((value, depth + 1) for value in part.values())
        elif isinstance(part, list):
            pending += ((value, depth + 1) for value in part)


def _check_class(part: dict[str, Any]) -> None:
    name, module = part["class_name"], part.get("module")
    if name in _RUNS_CODE:
        raise Rejection("unsafe_model", f"The model has a {name} layer, which runs code of the file's")
    if name in _READS_FILES:
        raise Rejection("unsafe_model", f"The model has a {name} layer, which may read files: tokenize before it")
    if module in (*_MODULES, *_OTHERS, *_BUILTINS):
        return
    if isinstance(module, str) and module.startswith("keras.src."):
        return
    raise NotConvertible(f"{str(module)[:60]}.{str(name)[:60]} is no class of Keras's own")
