"""Run a command that dies with the process that started it: `python leash.py PARENT_PID COMMAND…`.

On Linux the kernel sends SIGKILL to this process when the thread that started it ends, however it ends
(prctl(2), PR_SET_PDEATHSIG). The setting survives execve, so the command takes this process over, id included. A parent
that died before the call would go unnoticed: hence the look at the parent's id after it. The setting is not inherited
by the command's own children; they are the warden's part.

A script and not a `preexec_fn`: that would run between fork and exec of a process that may have threads. It imports
nothing but the standard library and is started without `site`, so that it costs milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent, then become the command."""
    parent_pid, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        raise SystemExit("the process that asked for this command has died")
    os.execvp(command[0], command)  # noqa: S606 - the command is the supervisor's own, and no shell is involved


if __name__ == "__main__":
    main()
