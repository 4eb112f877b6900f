"""Replays: recorded batches run again for an audit, below all live work, and leave no trace in it.

    intake.py   takes `ReplayRequested` from the log, waits until the lane has nothing to do, answers with `ReplayRan`
    pinned.py   the artefacts that replays name, loaded from the store and checked, apart from what serves
    batch.py    one batch: values held against their digests, the same steps and feeds as live, digests of the outputs

Nothing here knows Redis, outcomes or the statistics of runs. What a row's verdict is decides whoever asked.
"""
