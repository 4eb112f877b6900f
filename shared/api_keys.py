"""API keys to tenants.

A key comes as `Authorization: Bearer KEY` or `X-API-Key: KEY`. All configured keys are compared, each in constant time,
so that neither the time of one comparison nor their number before a hit tells anything. Without configured keys
everyone is the nameless tenant `None`; the settings then let the gateway bind loopback only, and the monitor offers
what changes something on loopback only.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Annotated

from pydantic import StringConstraints

from shared.errors import Unauthorized

if TYPE_CHECKING:
    from collections.abc import Mapping

ApiKey = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{8,200}$")]
Tenant = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,100}$")]


def tenant_of(headers: Mapping[str, str], api_keys: Mapping[str, str]) -> str | None:
    """The tenant that the request's key belongs to.

    Raises:
        Unauthorized: keys are configured, and the request has none of them.
    """
    if not api_keys:
        return None
    given = _key_of(headers).encode()
    tenant = None
    for key, owner in api_keys.items():
        if hmac.compare_digest(key.encode(), given):
            tenant = owner
    if tenant is None:
        raise Unauthorized("an API key is needed: `Authorization: Bearer KEY` or `X-API-Key: KEY`")
    return tenant


def _key_of(headers: Mapping[str, str]) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
