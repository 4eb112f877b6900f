"""Kafka and Redis as the stack sees them: an address, a probe, and a child of ours unless they were given."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.cli.local.probes import Probe
    from services.cli.local.supervisor import ChildSpec

_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Server:
    """`address` as clients configure it, `what` for people. `child` is None for a server that was given to us.

    `variables` are what clients must be told besides the address.
    """

    address: str
    what: str
    probe: Probe
    child: ChildSpec | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


async def unreachable(server: Server, timeout_s: float) -> str | None:
    """Wait for a server that was given; what it said last if it never was ready."""
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while (why_not := await server.probe()) is not None:
        if asyncio.get_running_loop().time() > deadline_s:
            return why_not
        await asyncio.sleep(_POLL_S)
    return None
