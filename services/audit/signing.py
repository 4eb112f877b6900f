"""Signed checkpoints: "the log of this partition, up to this offset, has this head", by Ed25519 (RFC 8032).

A checkpoint is a JSON document `{statement, signature, public_key}`. The statement is a string, itself JSON, and the
signature is over its UTF-8 bytes, so that nobody has to agree on how JSON is written. Signature and key are hex. The
public key is there to tell keys apart; a verifier trusts only keys that were given to it another way.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.codec import rfc3339
from shared.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

TYPE: Final = "aiaas.checkpoint/1"


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """What is signed. `heads_sha256` is over all heads of the records from `first` to before `offset`."""

    type: Literal["aiaas.checkpoint/1"] = "aiaas.checkpoint/1"
    cluster_id: str
    topic: str
    life: int
    partition: int
    first: int
    """Offset of the first record since the checkpoint before."""
    offset: int
    """Of the record behind the last one that `head` commits to."""
    head_before: str
    head: str
    heads_sha256: str
    created_at: str


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A signed statement."""

    statement: str
    signature: str
    public_key: str

    def read(self) -> Statement:
        """What it says; see `signed_by` for whether that is true.

        Raises:
            InvalidInput: it is no statement of this form.
        """
        try:
            return msgspec.json.decode(self.statement, type=Statement)
        except msgspec.MsgspecError as err:
            raise InvalidInput(f"not a checkpoint's statement: {err}") from err

    def signed_by(self, public_keys: frozenset[str]) -> bool:
        """Whether one of these keys (hex) signed it."""
        if self.public_key not in public_keys:
            return False
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.public_key))
            key.verify(bytes.fromhex(self.signature), self.statement.encode())
        except (InvalidSignature, ValueError):
            return False
        return True


class Signer:
    """Holds the private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.public_key = raw.hex()

    def sign(self, **about: Any) -> Checkpoint:
        """A checkpoint of now."""
        statement = json.dumps(msgspec.to_builtins(Statement(**about, created_at=rfc3339(time.time_ns()))))
        return Checkpoint(
            statement=statement, signature=self._key.sign(statement.encode()).hex(), public_key=self.public_key
        )


def load(path: Path) -> Signer:
    """The signer of a private key file.

    Raises:
        InvalidInput: it can't be read, or is no Ed25519 key in PEM without a password.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as err:
        raise InvalidInput(f"the key that signs checkpoints, {path}: {err}") from err
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidInput(f"the key that signs checkpoints, {path}, is not an Ed25519 key")
    return Signer(key)


def load_or_make(path: Path) -> Signer:
    """The signer of a private key file, which is made if it is not there: for its owner's eyes only.

    Raises:
        InvalidInput: as `load`.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        pem = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        beside = path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    return load(path)


def public_keys(given: str) -> frozenset[str]:
    """Public keys from text: raw in hex, or PEM; several are separated by lines or commas.

    Raises:
        InvalidInput: it is neither.
    """
    if "-----BEGIN" in given:
        try:
            key = serialization.load_pem_public_key(given.encode())
        except ValueError as err:
            raise InvalidInput(f"not a public key in PEM: {err}") from err
        raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return frozenset([raw.hex()])
    keys = frozenset(given.replace(",", " ").split())
    for key_hex in keys:
        if len(key_hex) != 64 or set(key_hex) - set("0123456789abcdef"):  # noqa: PLR2004 - 32 bytes
            raise InvalidInput(f"{key_hex[:80]!r} is not an Ed25519 public key in hex")
    return keys


def decode_checkpoint(content: bytes) -> Checkpoint:
    """A stored checkpoint, whose statement can be read.

    Raises:
        InvalidInput: it is none.
    """
    try:
        checkpoint = msgspec.json.decode(content, type=Checkpoint)
    except msgspec.MsgspecError as err:
        raise InvalidInput(f"not a checkpoint: {err}") from err
    checkpoint.read()
    return checkpoint
