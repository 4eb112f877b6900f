"""`torch.export` programs (.pt2): an archive of which only vetted parts are written into a fresh one.

Kept are the program (see `program`), its weights and its constants as plain bytes. Left out, or refused where the
program needs them: pickles of weights, of constants, of sample inputs, compiled code, custom objects. So nothing that
`torch.export.load` would unpickle, evaluate or execute is there when it is called. Pure; no torch.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from services.optimizer.conversion import program
from services.optimizer.conversion.archives import zipped
from services.optimizer.rejections import Rejection

if TYPE_CHECKING:
    from services.optimizer.conversion.archives import Archive

_FORMAT: Final = {"archive_format": b"pt2", "archive_version": b"0", ".data/version": b"6\n", "byteorder": b"little"}
"""What every archive of the kind says of itself."""
_NAME: Final = "model"
"""What a program is called whatever it was called: `torch.export.load` looks for that."""
_PAYLOAD: Final = re.compile(r"(weight|tensor)_\d{1,9}")
_MAX_JSON_BYTES: Final = 256 * 1024 * 1024
_HARMLESS_PREFIXES: Final = ("data/weights/", "data/constants/", "data/sample_inputs/", "models/", ".data/", "extra/")
_HARMLESS: Final = frozenset({"archive_format", "archive_version", "byteorder", "version", "module_info.json"})


def vetted(archive: Archive) -> bytes:
    """A `.pt2` with nothing in it but what computes.

    Raises:
        Rejection: it holds what it may not.
    """
    for name in archive.sizes:
        if name not in _HARMLESS and not name.startswith(_HARMLESS_PREFIXES):
            raise Rejection("unsafe_model", f"The .pt2 holds {name[:100]!r}, which is no part of a program")
    names = [name for name in archive.named(".json") if name.startswith("models/")]
    if len(names) != 1:
        raise Rejection("invalid_model", f"The .pt2 holds {len(names)} programs; it may hold one")
    called = names[0].removeprefix("models/").removesuffix(".json")
    kept = {
        **_FORMAT,
        f"models/{_NAME}.json": program.vetted(_small(archive, names[0])),
        f"data/sample_inputs/{_NAME}.pt": b"",
    }
    for what in ("weights", "constants"):
        kept |= _payloads(archive, f"data/{what}/", called, f"_{what}_config.json")
    return zipped(kept)


def _payloads(archive: Archive, directory: str, called: str, config: str) -> dict[str, bytes]:
    """The plain bytes of weights or constants, and the JSON that says which is which.

    Raises:
        Rejection: some are pickles, or custom objects.
    """
    config_name = called + config
    try:
        document: Any = json.loads(_small(archive, directory + config_name))
        entries = dict(document["config"])
        program.on_cpu(entries)
        paths = set()
        for name, entry in entries.items():
            path = entry["path_name"]
            if entry["use_pickle"] or entry["tensor_meta"] is None or not _PAYLOAD.fullmatch(path):
                raise Rejection("unsafe_model", f"{name[:100]!r} is kept as a pickle or a custom object in the .pt2")
            paths.add(path)
        for sizes in _expressions(entries):
            program.check_expression(sizes)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise Rejection("invalid_model", f"{config_name[:100]!r} is not as torch.export writes it: {err!r}") from err
    payloads = {directory + path: archive.read(directory + path) for path in sorted(paths)}
    return {f"{directory}{_NAME}{config}": json.dumps({"config": entries}).encode(), **payloads}


def _expressions(part: Any) -> list[Any]:
    found, pending = [], [part]
    while pending:
        each = pending.pop()
        if isinstance(each, dict):
            found += [each["expr_str"]] if "expr_str" in each else []
            pending += each.values()
        elif isinstance(each, list):
            pending += each
    return found


def _small(archive: Archive, name: str) -> bytes:
    if archive.sizes.get(name, 0) > _MAX_JSON_BYTES:
        raise Rejection("invalid_model", f"{name[:100]!r} has {archive.sizes[name]} bytes")
    return archive.read(name)
