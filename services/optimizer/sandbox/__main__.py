"""The child's entry: confine itself, read the job, do it. Exit 0 when all is said, 78 if nothing can be done here."""

from __future__ import annotations

import sys

import msgspec

from services.optimizer.messages import UNUSABLE_EXIT, Job
from services.optimizer.sandbox import landlock
from shared.confine import confine, private_stdout

_MAX_JOB_BYTES = 64 * 1024


def main() -> None:
    """Do the one job on stdin."""
    out = private_stdout()
    job = msgspec.json.decode(sys.stdin.buffer.read(_MAX_JOB_BYTES), type=Job)
    confine(job.limits, job.parent_pid)
    reached = landlock.restrict()
    try:
        from services.optimizer.sandbox.pipeline import Pipeline, probe  # noqa: PLC0415 - only once confined
    except ImportError as err:
        sys.stderr.write(f"the optimizer's environment lacks a library: {err}\n")
        raise SystemExit(UNUSABLE_EXIT) from err
    if job.kind == "probe":
        probe(out, reached)
    else:
        Pipeline(job, out).run()


if __name__ == "__main__":
    main()
