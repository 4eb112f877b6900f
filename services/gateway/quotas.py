"""What each tenant may ask for, over all gateways: leased from Redis in chunks, spent here.

Redis holds one token bucket a tenant (`Replies.lease`). A gateway takes as many tokens as the tenant used lately, one
at first, so that a busy tenant costs a round trip every `_LEASE_S` and a quiet one never keeps tokens from another
gateway; what is left when a lease ends goes back with the next one. All gateways together can't let in more than the
bucket gives. A tenant that has nothing left is told so from memory until there would be a token again.

Who has no quota configured is not limited, and the nameless tenant (no keys configured) has none.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from shared.errors import QuotaExceeded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.gateway.settings import Quota
    from shared.replies import Replies

_LEASE_S: Final = 0.2
_CHUNK_SHARE: Final = 4
"""One lease takes at most such a part of a burst."""
_LONGEST_REFUSAL_S: Final = 1.0
"""After this Redis is asked again, although there should be no token yet."""


class Quotas:
    """The leases of one gateway."""

    def __init__(self, quotas: Mapping[str, Quota]) -> None:
        self._leases = {tenant: _Lease(tenant, quota) for tenant, quota in quotas.items()}

    def has(self, tenant: str | None) -> bool:
        """Whether there is one for the tenant."""
        return tenant is not None and tenant in self._leases

    async def spend(self, tenant: str | None, replies: Replies) -> None:
        """Count one request of the tenant.

        Raises:
            QuotaExceeded: it may not be asked now.
            RepliesUnavailable: Redis does not say.
        """
        lease = self._leases.get(tenant) if tenant is not None else None
        if lease is not None:
            await lease.spend(replies)


class _Lease:
    """Tokens of one tenant in this gateway."""

    def __init__(self, tenant: str, quota: Quota) -> None:
        self._tenant = tenant
        self._quota = quota
        self._most = max(1, quota.burst // _CHUNK_SHARE)
        self._tokens = 0
        self._spent = 0
        self._ends_s = 0.0
        self._refused_until_s = 0.0
        self._renewing: asyncio.Task[None] | None = None

    async def spend(self, replies: Replies) -> None:
        """Take one token, of the lease or of the next one."""
        while True:
            now_s = time.monotonic()
            if now_s < self._refused_until_s:
                raise QuotaExceeded(
                    f"tenant {self._tenant!r} has used up its {self._quota.requests_per_s:g} requests a second",
                    self._refused_until_s - now_s,
                )
            if self._tokens and now_s < self._ends_s:
                self._tokens -= 1
                self._spent += 1
                return
            if self._renewing is None:
                self._renewing = asyncio.create_task(self._renew(replies, now_s))
                self._renewing.add_done_callback(self._renewed)
            await asyncio.shield(self._renewing)  # for all who ask meanwhile: a caller that leaves takes nothing along

    async def _renew(self, replies: Replies, now_s: float) -> None:
        wanted = max(1, min(self._most, 2 * self._spent if now_s < self._ends_s else self._spent))
        back, self._tokens, self._spent = self._tokens, 0, 0
        quota = self._quota
        got, after_s = await replies.lease(
            self._tenant, rate=quota.requests_per_s, burst=quota.burst, wanted=wanted, back=back
        )
        self._tokens = got
        now_s = time.monotonic()
        self._ends_s = now_s + _LEASE_S
        if not got:
            self._refused_until_s = now_s + min(after_s, _LONGEST_REFUSAL_S)

    def _renewed(self, task: asyncio.Task[None]) -> None:
        self._renewing = None
        if not task.cancelled():
            task.exception()  # whoever waits raises it; nobody may be left to
