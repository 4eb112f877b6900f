"""URLs that point at our own resources, and version numbers in them."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from shared.errors import UnknownVersion

_MAX_DIGITS: Final = 10


def version_of(text: str | None, model: str) -> int | None:
    """The version number of a path, None where the path names none.

    Raises:
        UnknownVersion: the path names something that can't be one.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise UnknownVersion(f"model {model!r} has no version {text[:40]!r}: versions are numbers from 1")
    return int(text)


def requests_url(model: str, request_id: str) -> str:
    """Where the outcome of a request can be asked for."""
    return f"/v2/models/{quote(model)}/requests/{quote(request_id, safe='')}"


def version_url(model: str, version: int) -> str:
    """Where the state of a version can be asked for."""
    return f"/v2/repository/models/{quote(model)}/versions/{version}"
