"""Admission's rules on simulated queues: what decision 5 stands on.

    python -m benchmarks.admission

For models of different speeds: the wait (p99) of callers who wait for their answers, 64 and 256 of them; then, with
three times the capacity offered at random moments, the wait of those who were let in and what share of the capacity
they got, under a fixed number and under the learned limit. The second half of each run counts. No clock is involved:
the same numbers come out everywhere.
"""

from __future__ import annotations

from services.gateway.limits import InFlightLimit
from services.gateway.settings import GatewaySettings
from tests.support.queueing import Fixed, Served, poisson, simulate, simulate_callers

MODELS = (
    Served("small network, 4,000/s", 0.002, 0.00019),
    Served("small network, 1,000/s", 0.005, 0.00085),
    Served("600/s", 0.005, 0.0015),
    Served("language model, 50/s", 0.005, 0.0198),
    Served("job of 5 s", 5.0, 0.0, cap=1),
    Served("job of 5 s, 8 workers", 5.0, 0.0, cap=1, workers=8),
    Served("16 wide workers, 1,000/s", 0.1, 0.9 / 64, cap=64, workers=16),
)


def learned(served: Served) -> InFlightLimit:
    """The gateway's own rule with its defaults."""
    settings = GatewaySettings()
    limit = InFlightLimit(most=settings.max_in_flight_per_model, queue_s=settings.max_queue_s)
    limit.workers_hold(served.places)
    return limit


def main() -> None:
    print(f"{'':26} {'64 callers':>11} {'256 callers':>11} | {'fixed 1024':>18} | {'learned':>18} {'limit':>6}")
    for served in MODELS:
        end_s = max(20.0, 600 / served.capacity)
        half_s = end_s / 2
        waits = [simulate_callers(served, Fixed(1024), callers, end_s).p99(half_s) for callers in (64, 256)]
        cells = []
        limit = learned(served)
        for rule in (Fixed(1024), limit):
            run = simulate(served, rule, poisson(3 * served.capacity, 0.0, end_s))
            cells.append(f"{run.p99(half_s):9.3f} s {run.rate(half_s, end_s) / served.capacity:6.0%}")
        print(f"{served.name:26} {waits[0]:9.3f} s {waits[1]:9.3f} s | {cells[0]} | {cells[1]} {limit.value:6}")


if __name__ == "__main__":
    main()
