"""The monitor: what happened, to the unit, and how everyone is.

Three sources, read in three ways:

1. `outcomes` (`outcome_log` → `fold`): one receipt per request, from which requests, errors, latencies
   and batch sizes are counted exactly. Read with explicit offsets; state and offsets are stored together (`snapshot`),
   so a monitor that was killed ends up with the numbers of one that was not.
2. `metrics` (`subscribers` → `measurements`): samples of hosts and counts of services, by FastStream. Acknowledged
   when they are in a stored snapshot.
3. `workers` (`shared.heartbeats`): who is alive, what it has loaded, what waits for it.

What it counted goes back to the log (`totals` → `publisher`): statistics by version, for gateways to show.
`state` holds all of it together; `exposition` shows it to Prometheus, `views` as JSON, `routes` by HTTP; `app` wires.

Over time: outcomes and samples become rows by window (`recorder`, `metering`), which are stored with the snapshot
(`storing`, `history`) and asked for in SQL (`queries` → `tally`). From those: `series`, `overview`, `timeline` and
`story`, the conclusions (`analysis`, `examination`), `drift`, the alert rules (`findings` → `alerts`, judged by
`watching`), and the `report`. `docs/monitor.md` says what each of them means. `routes_dashboard` serves the page that
shows it all (`dashboard/`), and does what can be done from it (`docs/dashboard.md`).
"""
