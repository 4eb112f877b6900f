"""The monitor: what happened, to the unit, and how everyone is.

Three sources, read in three ways:

1. `outcomes` (`outcome_log` → `fold`): one receipt per request, from which requests, errors, latencies
   and batch sizes are counted exactly. Read with explicit offsets; state and offsets are stored together (`snapshot`),
   so a monitor that was killed ends up with the numbers of one that was not.
2. `metrics` (`subscribers` → `measurements`): samples of hosts and counts of services, by FastStream. Acknowledged
   when they are in a stored snapshot.
3. `workers` (`shared.heartbeats`): who is alive, what it has loaded, what waits for it.

What it counted goes back to the log (`totals` → `publisher`): statistics by version, for gateways to show.
`state` holds the three together; `exposition` shows them to Prometheus, `views` as JSON, `routes` by HTTP; `app` wires.
Not here: history, reports, alerts and the dashboard.
"""
