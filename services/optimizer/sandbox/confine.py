"""What the child takes from itself before it opens the file.

Limits are set here and not by the parent between fork and exec, where a process that may have threads can't run Python
safely. Nothing hostile has been read yet, so it makes no difference to the file.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, TextIO

from services.optimizer.sandbox import landlock

if TYPE_CHECKING:
    from services.optimizer.messages import Job

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def private_stdout() -> TextIO:
    """The pipe to the parent, moved away from descriptor 1: what libraries print there goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def confine(job: Job) -> int:
    """Die with the parent, gain no privileges, stay within the job's limits, reach no files but one's own.

    Returns the version of Landlock, 0 where there is none.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_NO_NEW_PRIVS, 1)):
            if libc.prctl(option, value, 0, 0, 0):
                raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
    if os.getppid() != job.parent_pid:  # it died before prctl could tell
        raise SystemExit("the optimizer that asked for this job has died")
    limits = job.limits
    for kind, limit in (
        (resource.RLIMIT_AS, limits.address_space_bytes),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        lower = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (lower, lower))
    os.nice(limits.niceness)
    return landlock.restrict()
