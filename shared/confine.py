"""What a child process takes from itself before it opens a file that it was given.

Limits are set here and not by the parent between fork and exec, where a process that may have threads can't run Python
safely. Nothing hostile has been read yet, so it makes no difference to the file.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from typing import TextIO

from msgspec import Struct

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the child sets for itself before it opens the file; see setrlimit(2)."""

    address_space_bytes: int | None
    """None: as much as there is. CUDA reserves far more than it uses."""
    cpu_s: int
    file_bytes: int
    open_files: int = 256
    niceness: int = 5


def private_stdout() -> TextIO:
    """The pipe to the parent, moved away from descriptor 1: what libraries print there goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def confine(limits: Limits, parent_pid: int) -> None:
    """Die with the parent, gain no privileges, and stay within the limits."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_NO_NEW_PRIVS, 1)):
            if libc.prctl(option, value, 0, 0, 0):
                raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
    if os.getppid() != parent_pid:  # it died before prctl could tell
        raise SystemExit("the process that asked for this job has died")
    for kind, limit in (
        (resource.RLIMIT_AS, limits.address_space_bytes),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_CORE, 0),
    ):
        if limit is None:
            continue
        hard = resource.getrlimit(kind)[1]
        lower = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (lower, lower))
    os.nice(limits.niceness)
