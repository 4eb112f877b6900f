"""How a process ends: with its exit code, before the interpreter is taken apart.

Threads that a native package started (obstore's, where it waits for the store) hand results to Python and need its lock
for a moment more after whoever waited has gone on. A process that ends in that moment takes the lock away for good, and
up to Python 3.13 the thread is then ended in a way that Rust answers with an abort: one in thirty audit commands on a
machine that was busy. Nothing can be waited for, since nobody knows of such a thread. So a process ends itself when all
that Python does at the end is done: threads of its own joined, handlers of `atexit` called, output flushed.
"""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_FAILED = 1
_INTERRUPTED = 130


@contextmanager
def of_the_process() -> Iterator[None]:
    """Around all that a process does; nothing may come after it. What is raised becomes the exit code, as usual."""
    code = _FAILED

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
                stream.flush()
        os._exit(code)

    atexit.register(leave)  # before any other, so it is called last
    try:
        yield
        code = 0
    except SystemExit as err:
        code = err.code if isinstance(err.code, int) else 0 if err.code is None else _FAILED
        raise
    except KeyboardInterrupt:
        code = _INTERRUPTED
        raise
