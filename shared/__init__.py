"""What two or more services share: the contracts of the platform.

Read in this order: `topics` (the map of the log), `events` (the facts on it), `codec` (their bytes),
`requests` and `tensors` (an inference request), `replies` (the answer in Redis), `outcomes` (exactly one per
request), `registry` (models as a fold over the log). Nothing in here knows a service.
"""
