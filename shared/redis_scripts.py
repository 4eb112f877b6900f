"""The scripts that run in Redis: what has to be one step there, or many steps in one round trip.

Each leaves the same behind when it is run twice, so one whose answer was lost is simply run again. Keys and values are
`shared.replies`' business.
"""

from __future__ import annotations

import hashlib
from typing import Final


class Script:
    """A script, and the digest by which Redis knows it once it has seen it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha1 = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


SCREEN: Final = Script("""
local n, nothing, found = tonumber(ARGV[2]), true, {}
for i = 1, n do
    found[i] = redis.call('SET', KEYS[i], ARGV[2 + i], 'NX', 'GET', 'EX', ARGV[1])
    found[n + i] = redis.call('GET', KEYS[n + i])
    nothing = nothing and not found[i] and not found[n + i]
end
for i = 3 + n, #ARGV, 2 do
    redis.call('HSET', KEYS[2 * n + 1], ARGV[i], ARGV[i + 1])
end
return nothing and {} or found
""")
"""Claim ids, read answers, mark a run. Keys: n claims, n results, the hash of runs. Arguments: TTL, n, n claims, then
fields and values of the mark. Returns n owners and n answers, nil where there was none; nothing if there were none."""

PUT: Final = Script("""
local n, m, nothing, earlier = tonumber(ARGV[2]), tonumber(ARGV[3]), true, {}
for i = 1, n do
    earlier[i] = redis.call('SET', KEYS[i], ARGV[3 + i], 'NX', 'GET', 'EX', ARGV[1])
    nothing = nothing and not earlier[i]
end
for i = n + 1, n + m do
    redis.call('EXPIRE', KEYS[i], ARGV[1])
end
local at = 4 + n
if KEYS[n + m + 1] then
    local last = at + tonumber(ARGV[at])
    for i = at + 1, last do
        redis.call('HDEL', KEYS[n + m + 1], ARGV[i])
    end
    at = last + 1
end
if nothing then
    for i = at, #ARGV, 2 do
        redis.call('PUBLISH', ARGV[i], ARGV[i + 1])
    end
end
return nothing and {} or earlier
""")
"""Offer answers, end a run, tell gateways. Keys: n results, m claims that last no longer than these, maybe the hash of
runs. Arguments: TTL, n, m, n answers, with a hash of runs the number of its fields and these, then channels and
messages. Returns n earlier answers, nil where there was none, and nothing if there were none at all; only then is
anything published, since what was packed would else not be what counts."""

LEASE: Final = Script("""
local rate, burst, wanted, back = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local left = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local at = tonumber(left[2] or now)
local tokens = math.min(burst, tonumber(left[1] or burst) + back + math.max(0, now - at) * rate)
local leased = math.min(wanted, math.floor(tokens))
tokens = tokens - leased
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens), 'at', string.format('%.6f', math.max(now, at)))
redis.call('PEXPIRE', KEYS[1], math.ceil(burst / rate * 1000) + 1000)
return {leased, math.ceil(math.max(0, 1 - tokens) / rate * 1000)}
""")
"""A token bucket for all gateways. Key: the tenant's. Arguments: tokens a second, most tokens, tokens wanted, tokens
given back. Returns the tokens leased, and after how many ms there will be one more. A key that expired was full."""
