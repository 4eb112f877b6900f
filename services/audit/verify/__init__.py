"""Verify: holds what is kept against itself, and names every link that is broken, the first one first.

    archive   manifests, files, chain, checkpoints, outcomes, digests of requests and results: the archive alone
    kafka     the same chain over what Kafka still has, completeness up to the committed offsets, digests
    report    what was found

What each proves, and what it can't, is in docs/audit.md.
"""
