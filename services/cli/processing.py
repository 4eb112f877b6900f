"""A declaration of processing as a user writes it: JSON in which files stand by their paths.

`tokenizer` of a tokenize step, and `labels` of a labels step if it is a text and not a list, are paths relative to the
declaration's own file. They go to the platform's store, and what stands in their place there into the declaration,
which goes there too. What else is wrong with it the platform says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from services.cli.errors import NotTried

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from services.cli.client import Gateway

_FILES: Final = ("tokenizer", "labels")
_CHUNK_BYTES: Final = 1024 * 1024


def stored(gateway: Gateway, file: Path) -> str:
    """Put a declaration and all that it names into the store; returns its digest.

    Raises:
        NotTried: it is no JSON of that form, or a file that it names can't be read.
        Refused: the platform did not take it.
    """
    try:
        declared = orjson.loads(file.read_bytes())
    except (OSError, ValueError) as err:
        raise NotTried(f"--processing {file}: {err}.") from err
    for step in _steps(declared):
        for name in _FILES:
            if isinstance(step.get(name), str):
                step[name] = _stored_file(gateway, file.parent / step[name])
    document = orjson.dumps(declared)
    return str(gateway.store(iter([document]), len(document))["sha256"])


def _steps(declared: Any) -> Iterator[dict[str, Any]]:
    """All steps that are maps; of the rest, the platform says what is wrong."""
    lists = declared.values() if isinstance(declared, dict) else ()
    for steps in lists:
        yield from (step for step in steps if isinstance(step, dict)) if isinstance(steps, list) else ()


def _stored_file(gateway: Gateway, path: Path) -> dict[str, Any]:
    try:
        byte_size = path.stat().st_size
        with path.open("rb") as content:
            return gateway.store(iter(lambda: content.read(_CHUNK_BYTES), b""), byte_size)
    except OSError as err:
        raise NotTried(f"--processing names {path}: {err.strerror or err}.") from err
