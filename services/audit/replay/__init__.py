"""Replay and back-test: recorded batches run again on workers, and a verdict on every row.

    batches.py      recorded outcomes put together to the batches that they ran in
    asking.py       a batch as `ReplayRequested`
    configurations.py  how versions were configured to run, as of any offset
    runs.py         batches at workers: so many at a time, asked for again if no answer comes
    differences.py  two answers held against each other
    verdicts.py     a row's class and its reason
    report.py       summary, rows as Parquet, one page of HTML
    replaying.py    all of it, for `aiaas audit replay`
    backtest.py     two versions on the same recorded requests, for `aiaas audit backtest`

Nothing here runs a model, and nothing writes to where live answers are.
"""
