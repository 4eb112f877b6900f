"""Kill process groups when the process that holds our standard input dies: `python warden.py`, then `+PID`, `-PID`.

The stack writes a line when a child starts (`+PID`, the leader of its own group) and when its group is gone (`-PID`).
When the pipe breaks, whatever is left is killed: the children's children included, which the kernel's parent-death
signal does not reach. Signals that a terminal or a person sends to everyone are ignored: only the pipe ends this
process, and the pipe always does.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress


def main() -> None:
    """Keep the list until the pipe ends, then kill what is on it."""
    for harmless in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(harmless, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        change = groups.add if line[0] == "+" else groups.discard
        change(int(line[1:]))
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
