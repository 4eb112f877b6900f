"""`Prefer` (RFC 7240): whether a caller wants 202 instead of waiting, and how long it would wait for better.

`respond-async` alone is 202 at once; `respond-async, wait=10` is the answer if it comes within ten seconds, else 202.
`wait` without `respond-async` changes nothing: that wait is bounded by the request's `timeout`. As the RFC has it, what
is not understood is ignored, and of a preference that comes twice the first counts.
"""

from __future__ import annotations

from typing import Final

_MAX_DIGITS: Final = 6


def respond_async(prefer: str) -> int | None:
    """Seconds to wait before 202, out of the value of `Prefer`; None if the caller waits for its answer."""
    preferences: dict[str, str] = {}
    for preference in prefer.split(","):
        name, _, rest = preference.partition("=")
        preferences.setdefault(name.partition(";")[0].strip().lower(), rest.partition(";")[0].strip().strip('"'))
    if "respond-async" not in preferences:
        return None
    wait = preferences.get("wait", "")
    return int(wait) if wait.isascii() and wait.isdecimal() and len(wait) <= _MAX_DIGITS else 0


def applied(wait_s: int) -> str:
    """What `Preference-Applied` says of a request that came with `respond-async`."""
    return f"respond-async, wait={wait_s}" if wait_s else "respond-async"
