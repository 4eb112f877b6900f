"""What is kept of a finished step, in the artifact store: what was found, and what its file was made of. Pure.

A document is JSON and content-addressed. It was written by an optimizer, but the store is not only ours: reading
validates all of it, and what does not fit counts as not done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from services.optimizer.actions import UPLOAD
from services.optimizer.messages import Found
from services.optimizer.plan import SAME_BYTES
from shared.events import DataUsed, Provenance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.optimizer.actions import Spec
    from services.optimizer.plan import Means

MAX_BYTES = 1024 * 1024


class Document(Struct, frozen=True, kw_only=True):
    """A finished step."""

    found: Found
    provenance: Provenance | None = None
    """Of its file; None if it made none."""
    data: DataUsed | None = None
    """The data set that it drew."""

    def encode(self) -> bytes:
        """As it is kept."""
        return msgspec.json.encode(self)


def decode(content: bytes) -> Document | None:
    """The inverse of `encode`; None if it is no such document."""
    try:
        return msgspec.json.decode(content, type=Document)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def provenance(
    spec: Spec, found: Found, files: Mapping[str, str], seed: int, means: Means, data: Mapping[str, DataUsed]
) -> Provenance:
    """Of the file that a step made; `files` are the digests of what steps start from, by step."""
    used = {role: msgspec.structs.replace(each, rows=found.rows.get(role, each.rows)) for role, each in data.items()}
    parameters = {"action": spec.action, "chosen": msgspec.Raw(found.parameters.encode())}
    return Provenance(
        parent_sha256=files[spec.base if spec.base in files else UPLOAD],
        recipe=spec.name,
        parameters=msgspec.json.encode(parameters).decode()[:16_384],
        seed=seed,
        tools=dict(means.tools),
        data=used,
        same_bytes=spec.name in SAME_BYTES,
    )
