"""The chain over a log's records: each head commits to all that was before it.

    head(n) = SHA-256( head(n-1) ‖ part(key) ‖ part(value) )        head before the first record: 32 zero bytes
    part(bytes) = length as 4 bytes, big-endian ‖ bytes             part(null) = ff ff ff ff

Over one partition, in log order, over every record that its readers get, whether it counts or not. Test vectors are in
`services/audit/export/vectors.json`, and so in every export.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

START: Final = bytes(32)
"""The head before the first record."""
_NULL: Final = b"\xff\xff\xff\xff"


def part(data: bytes | None) -> bytes:
    """A key or value as it goes into the hash."""
    return _NULL if data is None else len(data).to_bytes(4, "big") + data


def link(head: bytes, key: bytes | None, value: bytes | None) -> bytes:
    """The head after one more record."""
    return hashlib.sha256(head + part(key) + part(value)).digest()


@dataclass
class Chain:
    """A head, and the digest over all heads since the last `cut`, which lets a reader trust each of them."""

    head: bytes = START
    _heads: hashlib._Hash = field(default_factory=hashlib.sha256)

    def add(self, key: bytes | None, value: bytes | None) -> bytes:
        """One more record; returns the new head."""
        self.head = link(self.head, key, value)
        self._heads.update(self.head)
        return self.head

    @property
    def so_far(self) -> str:
        """The digest over the heads since the last cut, in hex."""
        return self._heads.hexdigest()

    def cut(self) -> None:
        """Begin another digest over heads."""
        self._heads = hashlib.sha256()
