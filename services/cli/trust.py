"""TLS as the commands speak it to a gateway and a monitor: whom they believe, and who they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from services.cli.errors import NotTried
from shared import tls

if TYPE_CHECKING:
    import ssl


def trust() -> ssl.SSLContext:
    """Whom to believe to be the gateway or the monitor behind an `https://` URL, and who we are there.

    `AIAAS_CA_FILE` holds the certificates of authorities, else the system's count; `AIAAS_CLIENT_CERT_FILE` and
    `AIAAS_CLIENT_KEY_FILE` are for a gateway that lets in by certificate.

    Raises:
        NotTried: a file can't be used.
    """
    names = ("AIAAS_CA_FILE", "AIAAS_CLIENT_CERT_FILE", "AIAAS_CLIENT_KEY_FILE")
    ca, certificate, key = (Path(path) if (path := os.environ.get(name)) else None for name in names)
    try:
        return tls.client_context(ca, certificate, key)
    except (OSError, ValueError) as err:
        given = ", ".join(f"{name}={os.environ[name]}" for name in names if os.environ.get(name))
        raise NotTried(f"{given} can't be used: {err}.") from err
