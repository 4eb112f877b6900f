"""TLS: the contexts of our clients and servers, and certificates that are looked at when a service starts.

Everything is PEM. A client checks the server's certificate and name against `cafile`, or against the system's store if
there is none; a certificate of its own is sent where it has one (mutual TLS). A server presents its certificate, and
with a client CA lets only those in whom that CA has signed. Both speak TLS 1.2 or later, with OpenSSL's own ciphers.

`CaFile`, `CertFile` and `KeyFile` are fields of settings: a file that is missing, holds something else, has expired or
does not belong to its neighbour stops the start, rather than the first connection. A context holds what the files held
when it was made: renewed certificates count from the next start.

Deliberately missing: passphrases (whoever can read the variable can read the file), revocation lists, and reloading.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo

_NOT_YET_VALID, _EXPIRED = 9, 10
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


def client_context(
    cafile: Path | None = None, certfile: Path | None = None, keyfile: Path | None = None
) -> ssl.SSLContext:
    """What a client trusts, and who it is.

    Raises:
        OSError: a file can't be used (`ssl.SSLError` included).
    """
    context = ssl.create_default_context(cafile=cafile)
    if certfile is not None:
        _load_pair(context, certfile, keyfile)
    return context


def server_context(certfile: Path, keyfile: Path | None = None, client_cafile: Path | None = None) -> ssl.SSLContext:
    """What a server presents, and whom it lets in: everyone, or with `client_cafile` who has a certificate by it.

    Raises:
        OSError: a file can't be used (`ssl.SSLError` included).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_pair(context, certfile, keyfile)
    if client_cafile is not None:
        context.load_verify_locations(client_cafile)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _checked_certificates(path: Path) -> Path:
    """A file of one certificate or several, as authorities and as chains."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as err:
        raise ValueError("expected certificates in PEM form (-----BEGIN CERTIFICATE-----)") from err
    except OSError as err:
        raise ValueError(f"can't be read: {err.strerror}") from err
    return path


def _checked_key(keyfile: Path | None, info: ValidationInfo) -> Path | None:
    """The key of the certificate in the field beside it; without a key file of its own it must be in that one."""
    neighbour = str(info.field_name).replace("keyfile", "certfile")
    if neighbour not in info.data:  # wrong itself, and told
        return keyfile
    certfile: Path | None = info.data[neighbour]
    if certfile is None:
        if keyfile is not None:
            raise ValueError(f"is a key without a certificate: set AIAAS_{neighbour.upper()}")
        return None
    try:
        context = server_context(certfile, keyfile)
    except ssl.SSLError as err:
        where = f"a private key in PEM form that belongs to {certfile}"
        raise ValueError(f"expected {where} (OpenSSL says {err.reason or err})") from err
    except OSError as err:
        raise ValueError(f"can't be read: {err.strerror}") from err
    _check_dates(certfile, context)
    return keyfile


CaFile = Annotated[Path, AfterValidator(_checked_certificates)]
"""Certificates of authorities."""
CertFile = Annotated[Path, AfterValidator(_checked_certificates)]
"""A certificate, followed by those between it and the authority."""
KeyFile = Annotated[Path | None, AfterValidator(_checked_key)]
"""A private key; the field is named like its `CertFile`, follows it, and has `validate_default`."""


def _load_pair(context: ssl.SSLContext, certfile: Path, keyfile: Path | None) -> None:
    context.load_cert_chain(certfile, keyfile, password=_no_passphrase)


def _no_passphrase() -> str:
    """Without this OpenSSL asks on the terminal, and waits."""
    raise ValueError("the key is encrypted: store it without a passphrase, readable for this user alone")


def _check_dates(certfile: Path, presented: ssl.SSLContext) -> None:
    """Shake hands with ourselves in memory: what a peer will say of the certificate's dates. Nothing else is judged."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is enough of an anchor
    trusting.load_verify_locations(certfile)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(down, up)
    server = presented.wrap_bio(up, down, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as err:
            if err.verify_code in (_NOT_YET_VALID, _EXPIRED):
                raise ValueError(f"{certfile}: {err.verify_message}") from err
