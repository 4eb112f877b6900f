"""Certificates made on the spot, by an authority that nobody else knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trustme

if TYPE_CHECKING:
    from pathlib import Path

HOST = "127.0.0.1"


class Certificates:
    """An authority in `directory`, and what it signs: `NAME.pem`, `NAME-key.pem` and, for Kafka, both in one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._authority = trustme.CA()
        self.authority = directory / "ca.pem"
        self._authority.cert_pem.write_to_path(self.authority)

    def issue(self, name: str, **about: Any) -> tuple[Path, Path]:
        """A certificate for this machine's loopback interface with `name` as its common name; and its key."""
        issued = self._authority.issue_cert(HOST, "localhost", common_name=name, **about)
        certificate, key = self.directory / f"{name}.pem", self.directory / f"{name}-key.pem"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return certificate, key
