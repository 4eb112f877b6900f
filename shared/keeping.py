"""For how long Redis keeps answers: as long as is configured while it has room, for less as it fills.

A Redis that never evicts is full sooner or later, and then refuses all writes. An answer of a small model takes 1.6 KB
with its receipt and its claim: 1 GiB holds those of an hour at 200 requests a second, and would be full after three
minutes at 4,000. So whoever writes looks at Redis's memory, and the fuller it is the shorter what is written from then
on is kept: `longest_s` up to a fifth of `maxmemory`, `least_s` from two fifths. What was promised is kept; nothing
is evicted. Only where `least_s` of answers are too many is Redis full, and the platform waits (`RepliesUnavailable`).
"""

from __future__ import annotations

import time
from typing import Final

from shared import logs

_ROOMY: Final = 0.2
_TIGHT: Final = 0.4
"""The parts of the memory up to which answers are kept the longest, and from which they are kept the least."""
_STEEPNESS: Final = 3
_LOOK_EVERY_S: Final = 1.0
_TELL_FACTOR: Final = 2
"""What changes by this factor is told in the log."""


class Keeping:
    """`ttl_s` is for how long what is written now is kept: the longest until `adapt` says less."""

    def __init__(self, longest_s: int, least_s: int) -> None:
        self.ttl_s = longest_s
        self._longest_s = longest_s
        self._least_s = least_s
        self._told_s = longest_s
        self._next_look_s = 0.0

    @property
    def is_shortened(self) -> bool:
        """Whether answers are kept for less than is configured."""
        return self.ttl_s < self._longest_s

    def is_due(self) -> bool:
        """Whether it is time to look at the memory again: once a second, for whoever asks first."""
        now_s = time.monotonic()
        if now_s < self._next_look_s:
            return False
        self._next_look_s = now_s + _LOOK_EVERY_S
        return True

    def adapt(self, used: int, most: int) -> None:
        """Decide by bytes used and their bound, 0 if there is none."""
        self.ttl_s = kept_s(used, most, self._longest_s, self._least_s)
        before, now = self._told_s, self.ttl_s
        if max(before, now) >= _TELL_FACTOR * min(before, now) or (now != before and not self.is_shortened):
            self._told_s = now
            logs.get().warning("answers are kept", for_s=now, before_s=before, redis_used=used, redis_maxmemory=most)


def kept_s(used: float, most: float, longest_s: int, least_s: int) -> int:
    """For how many seconds to keep what is written while so much of the memory is used; there is room if `most` is 0.

    Between the two bounds it falls with the third power, steeply at first, since what was written before still takes
    its room, as does a tenth of it that has expired and was not collected yet. The rest, above the upper bound, is for
    that: Redis is not full if `least_s` of answers fit into four tenths of it.
    """
    fill, least_s = used / most if most else 0.0, min(least_s, longest_s)
    left = min(1.0, max(0.0, (_TIGHT - fill) / (_TIGHT - _ROOMY)))
    return round(least_s + (longest_s - least_s) * left**_STEEPNESS)
